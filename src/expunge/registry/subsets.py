"""Which samples of sealed data sets a question is about: by data set, by key, by a draw. Never reads an image."""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from expunge.evidence import subset as evidence
from expunge.formats.shards import SampleRecord
from expunge.registry.datasets import read_index
from expunge.registry.errors import Invalid
from expunge.registry.objects import ObjectStore, read_bytes
from expunge.registry.tables import Dataset

KEPT_RECORDS = 100_000
"""Index records that a process keeps in memory, some 50 MB; larger indexes are read anew each time."""
MAX_NAMED = 20
"""Unknown keys that a refusal names."""

_QUALIFIED = re.compile(r"(dst_[0-9a-f]{32})/(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Draw:
    """A random subset that anybody can draw again."""

    samples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Subset:
    """Part of some data sets' samples: those of `sample_keys`, if there are any, and of them a draw."""

    dataset_ids: tuple[str, ...]
    sample_keys: tuple[str, ...] | None = None
    """`key`, or `dst_…/key` where there are several data sets."""
    draw: Draw | None = None

    @classmethod
    def of(cls, params: dict[str, Any]) -> Self:
        """As `to_params` wrote it into a job."""
        keys, draw = params.get("sample_keys"), params.get("draw")
        return cls(
            tuple(params["dataset_ids"]),
            None if keys is None else tuple(keys),
            None if draw is None else Draw(**draw),
        )

    def to_params(self) -> dict[str, Any]:
        """As a job's parameters hold it."""
        draw = self.draw
        return {
            "dataset_ids": list(self.dataset_ids),
            "sample_keys": None if self.sample_keys is None else list(self.sample_keys),
            "draw": None if draw is None else {"samples": draw.samples, "seed": draw.seed},
        }

    def count(self, samples: int) -> int:
        """How many samples it has if its data sets have so many together and all its keys are known."""
        if self.sample_keys is not None:
            samples = len(self.sample_keys)
        return samples if self.draw is None else min(samples, self.draw.samples)

    def places(self) -> tuple[set[tuple[str, str]] | None, list[str]]:
        """The (data set, key) of its sample keys, None for all; and the keys that can be none of them."""
        if self.sample_keys is None:
            return None, []
        found, lost = set(), []
        for name in self.sample_keys:
            qualified = _QUALIFIED.fullmatch(name)
            if qualified and qualified.group(1) in self.dataset_ids:
                found.add((qualified.group(1), qualified.group(2)))
            elif len(self.dataset_ids) == 1:
                found.add((self.dataset_ids[0], name))
            else:
                lost.append(name)
        return found, lost


@dataclass(frozen=True, slots=True)
class Chosen:
    """One sample of a subset."""

    dataset: Dataset
    record: SampleRecord
    name: str
    """As answers name it: its key, behind its data set's id where there are several."""

    @property
    def key(self) -> str:
        """Name in its data set."""
        return self.record.key

    @property
    def has_caption(self) -> bool:
        """Whether one is there, and not blank."""
        return bool((self.record.caption or "").strip())

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of its encoded image."""
        return self.record.sha256


class Indexes:
    """Reads indexes of sealed data sets; small ones stay in memory. Threads may share it."""

    def __init__(self, store: ObjectStore, *, kept_records: int = KEPT_RECORDS) -> None:
        self._store = store
        self._limit = kept_records
        self._kept: OrderedDict[str, list[SampleRecord]] = OrderedDict()
        self._guard = threading.Lock()

    def records(self, dataset: Dataset) -> Iterable[SampleRecord]:
        """All records of a sealed data set, in order.

        Raises:
            ObjectMissing, ObjectDamaged, StoreUnavailable: see the store.
        """
        key = str(dataset.index_key)
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if dataset.samples > self._limit:
            return (SampleRecord(**each) for each in read_index(self._store, key))
        data = read_bytes(self._store, key)
        found = [SampleRecord(**json.loads(line)) for line in data.splitlines()]
        with self._guard:
            self._kept[key] = found
            while sum(map(len, self._kept.values())) > self._limit:
                self._kept.popitem(last=False)
        return found


def choose(subset: Subset, datasets: Sequence[Dataset], indexes: Indexes) -> list[Chosen]:
    """The samples of a subset, in order of data set and index; `datasets` are those that it names.

    Raises:
        ObjectMissing, ObjectDamaged, StoreUnavailable: see the store.
    """
    wanted, _ = subset.places()
    if subset.draw is None:
        return list(_every(datasets, indexes, wanted))
    return _drawn(datasets, indexes, subset.draw.samples, str(subset.draw.seed), wanted)


def drawn(
    datasets: Sequence[Dataset],
    indexes: Indexes,
    count: int,
    seed: str,
    *,
    with_captions: bool = False,
) -> list[Chosen]:
    """At most `count` of all samples of data sets, or of those with captions, see `evidence.subset.draw`.

    Raises:
        ObjectMissing, ObjectDamaged, StoreUnavailable: see the store.
    """
    if with_captions:
        every = _every(datasets, indexes, None)
        return evidence.draw([each for each in every if each.has_caption], count, seed)
    return _drawn(datasets, indexes, count, seed, None)


def _drawn(
    datasets: Sequence[Dataset],
    indexes: Indexes,
    count: int,
    seed: str,
    wanted: set[tuple[str, str]] | None,
) -> list[Chosen]:
    if wanted is None and len(datasets) == 1:
        # Most often; thousands of records are told apart in less time than they are wrapped.
        (dataset,) = datasets
        found = evidence.draw(indexes.records(dataset), count, seed)
        return [Chosen(dataset, record, record.key) for record in found]
    return evidence.draw(_every(datasets, indexes, wanted), count, seed)


def _every(
    datasets: Sequence[Dataset], indexes: Indexes, wanted: set[tuple[str, str]] | None
) -> Iterator[Chosen]:
    several = len(datasets) > 1
    for dataset in sorted(datasets, key=lambda each: each.id):
        for record in indexes.records(dataset):
            if wanted is None or (dataset.id, record.key) in wanted:
                name = f"{dataset.id}/{record.key}" if several else record.key
                yield Chosen(dataset, record, name)


def require_known(subset: Subset, datasets: Sequence[Dataset], indexes: Indexes) -> None:
    """Raise Invalid, which names them, if some of the subset's keys are of no sample.

    Raises:
        ObjectMissing, ObjectDamaged, StoreUnavailable: see the store.
    """
    wanted, unknown = subset.places()
    if wanted is None:
        return
    for dataset in datasets:
        here = {key for owner, key in wanted if owner == dataset.id}
        here.difference_update(record.key for record in indexes.records(dataset))
        unknown += [key if len(datasets) == 1 else f"{dataset.id}/{key}" for key in sorted(here)]
    if unknown:
        more = f" and {len(unknown) - MAX_NAMED:,} more" if len(unknown) > MAX_NAMED else ""
        form = "" if len(datasets) == 1 else "; with several data sets a key is `dst_…/key`"
        raise Invalid(
            f"There is no sample {', '.join(map(repr, unknown[:MAX_NAMED]))}{more} in the data sets "
            f"that are asked about{form}.",
            sample_keys=unknown[:MAX_NAMED],
        )
