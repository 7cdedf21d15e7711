"""Samples as the interactive worker reads them: only those asked for, checked, a batch at a time."""

import gc
import hashlib
import io
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.worker.lab import ENCODER

from expunge.evidence.audit.outputs import MAX_PAIR_SAMPLES
from expunge.formats.digests import sha256_file
from expunge.formats.shards import Sample, SampleRecord, index_shard, make_sample, write_shard
from expunge.registry.database import connect, sessions
from expunge.registry.jobs import Lease
from expunge.registry.objects import DirectoryStore, ObjectDamaged, ObjectMissing
from expunge.registry.settings import Settings
from expunge.registry.subsets import Chosen
from expunge.registry.tables import Dataset, JobKind, Shard
from expunge.unlearning.audit import stream_outputs
from expunge.unlearning.data.image_set import ImageSet, load_shards
from expunge.unlearning.frameworks import build
from expunge.worker.context import Context
from expunge.worker.leases import Held
from expunge.worker.samples import BATCH_SAMPLES, GAP_BYTES, Images

MANY = 2_000


class Counting(DirectoryStore):
    """Notes what is read of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.parts: list[int] = []

    def part(self, key: str, start: int, size: int) -> bytes:
        self.parts.append(size)
        return super().part(key, start, size)


class Shelf:
    """Data sets whose shards lie in a store, without a database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Counting(folder / "objects")
        settings = Settings(
            database_url="postgresql+psycopg://nobody@/nothing",
            object_store=(folder / "objects").as_uri(),
            work_dir=folder / "work",
            outage_patience_seconds=0.1,
        )
        self.context = Context(settings, sessions(connect(settings.database_url)), self.store)
        self.held = Held(self.context, Lease("job_1", JobKind.AUDIT, "token", 1))
        self.images = Images(self.store)

    def dataset(self, name: str, shards: Sequence[Sequence[Sample]]) -> list[Chosen]:
        """All samples of a new data set, in order."""
        dataset = Dataset(id=f"dst_{name}")
        records: list[SampleRecord] = []
        for number, samples in enumerate(shards):
            path = self.folder / f"{name}-{number}.tar"
            write_shard(path, samples)
            key = self.store.put(path, sha256_file(path))
            dataset.shards.append(Shard(name=path.name, object_key=key))
            records += index_shard(path, path.name)
        return [Chosen(dataset, record, record.key) for record in records]

    def read(self, chosen: Sequence[Chosen]) -> ImageSet:
        return ImageSet.concat(list(self.images.read(self.held, chosen, ENCODER)))


def samples(prefix: str, count: int, *, side: int = 16, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        out = io.BytesIO()
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG", compress_level=0)
        found.append(make_sample(f"{prefix}-{number:04d}", "png", out.getvalue()))
    return found


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_all_samples_are_those_of_the_shards_in_order(shelf: Shelf) -> None:
    chosen = shelf.dataset("a", [samples("x", 30), samples("y", 7, seed=1)])
    whole = load_shards([shelf.folder / "a-0.tar", shelf.folder / "a-1.tar"], 16)
    found = shelf.read(chosen)
    assert found.keys == whole.keys
    assert torch.equal(found.images, whole.images)
    assert torch.equal(found.ids, whole.ids)


def test_chosen_samples_come_in_the_order_asked_for_and_are_kept(shelf: Shelf) -> None:
    first = shelf.dataset("a", [samples("x", 30)])
    second = shelf.dataset("b", [samples("y", 30, seed=1)])
    chosen = [second[4], first[20], second[3], first[0], second[4]]
    found = shelf.read(chosen)
    whole = {name: load_shards([shelf.folder / f"{name}-0.tar"], 16).images for name in ("a", "b")}
    expected = [whole["b"][4], whole["a"][20], whole["b"][3], whole["a"][0], whole["b"][4]]
    assert torch.equal(found.images, torch.stack(expected))
    calls = len(shelf.store.parts)
    assert torch.equal(shelf.read(chosen).images, found.images)
    assert len(shelf.store.parts) == calls


def test_an_image_that_another_owner_asked_for_is_read_again(shelf: Shelf) -> None:
    first = shelf.dataset("a", [samples("x", 3)])
    second = shelf.dataset("b", [samples("x", 3)])
    second[0].dataset.owner_id = "another"
    shelf.read(first)
    calls = len(shelf.store.parts)
    shelf.read(second)
    assert len(shelf.store.parts) == calls + 1


def test_of_a_large_shard_only_what_is_asked_for_is_read(shelf: Shelf) -> None:
    # 64 images of 12 kB and more: those of the two ends lie further apart than a gap.
    large = samples("x", 64, side=64)
    chosen = shelf.dataset("a", [large])
    assert GAP_BYTES < 60 * 64 * 64 * 3
    shelf.read([chosen[0], chosen[1], chosen[63]])
    # Neighbours come together, with the tar header between them.
    assert len(shelf.store.parts) == 2
    assert sum(shelf.store.parts) < 4 * len(large[0].image)


def test_an_image_that_is_not_what_was_sealed_is_refused(shelf: Shelf) -> None:
    chosen = shelf.dataset("a", [samples("x", 3)])
    wrong = hashlib.sha256(b"another").hexdigest()
    record = chosen[1].record
    changed = SampleRecord(**(record.to_dict() | {"sha256": wrong}))
    with pytest.raises(ObjectDamaged, match="x-0001"):
        shelf.read([chosen[0], Chosen(chosen[1].dataset, changed, "x-0001")])


def test_a_shard_that_is_gone_is_said_to_be_missing(shelf: Shelf) -> None:
    chosen = shelf.dataset("a", [samples("x", 3)])
    shelf.store.delete(chosen[0].dataset.shards[0].object_key)
    with pytest.raises(ObjectMissing):
        shelf.read(chosen[:1])


def test_thousands_of_samples_stream_through_both_encoders_a_batch_at_a_time(
    shelf: Shelf,
) -> None:
    chosen = shelf.dataset("a", [samples("x", MANY, side=8)])
    alive: list[weakref.ref[ImageSet]] = []
    most = 0

    def watched() -> Iterator[ImageSet]:
        nonlocal most
        for batch in shelf.images.read(shelf.held, chosen, ENCODER):
            alive.append(weakref.ref(batch))
            assert len(batch) <= BATCH_SAMPLES
            yield batch
            del batch
            gc.collect()
            most = max(most, sum(each() is not None for each in alive))

    before, after = (build(ENCODER, seed=seed).eval() for seed in (1, 2))
    found = stream_outputs(before, after, watched(), MANY, views=2, device="cpu")
    assert len(alive) == -(-MANY // BATCH_SAMPLES)
    assert most <= 2
    for outputs in found.values():
        assert len(outputs) == MANY
        assert outputs.before.views.shape[:2] == (2, MAX_PAIR_SAMPLES)
