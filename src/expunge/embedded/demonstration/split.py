"""Who owns which images in the demo: a split of CIFAR-10 shards into four data sets.

The order of the shards is the only thing that decides; images are passed on byte for byte.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from expunge.formats.shards import Sample, iter_samples, write_shard

PARTS = ("owner_a", "owner_b", "retained", "control")
SAMPLES_PER_SHARD = 5000


class SplitError(ValueError):
    """The folder cannot be split; the message says what is missing."""


@dataclass(frozen=True)
class Sizes:
    """Images a part; `retained` None means all that are left."""

    retained: int | None
    owner: int
    control: int


def split(data: Path, out: Path, sizes: Sizes) -> dict[str, list[Path]]:
    """Write the four parts of the shards train-*.tar and test-*.tar of `data` into `out`.

    The first training images go to the two owners, the next to the model owner; the control is the
    first test images, which no encoder is trained on. Returns the shards by part.

    Raises:
        SplitError: `data` has too few images.
        ShardError: a shard breaks a rule of the format.
    """
    out.mkdir(parents=True, exist_ok=True)
    train, test = _samples(data, "train"), _samples(data, "test")
    return {
        "owner_a": _write(out, "owner_a", train, sizes.owner),
        "owner_b": _write(out, "owner_b", train, sizes.owner),
        "retained": _write(out, "retained", train, sizes.retained),
        "control": _write(out, "control", test, sizes.control),
    }


def _samples(data: Path, prefix: str) -> Iterator[Sample]:
    shards = sorted(data.glob(f"{prefix}-*.tar"))
    if not shards:
        raise SplitError(f"{data} holds no shards named {prefix}-*.tar")
    return chain.from_iterable(iter_samples(shard) for shard in shards)


def _write(out: Path, part: str, samples: Iterator[Sample], count: int | None) -> list[Path]:
    """One file when it fits, numbered files else."""
    shards: list[Path] = []
    written = 0
    while count is None or written < count:
        room = SAMPLES_PER_SHARD if count is None else min(SAMPLES_PER_SHARD, count - written)
        batch = list(islice(samples, room))
        if not batch:
            break
        name = (
            f"{part}.tar"
            if count is not None and count <= room
            else f"{part}-{len(shards):02d}.tar"
        )
        write_shard(out / name, batch)
        shards.append(out / name)
        written += len(batch)
    if written == 0 or (count is not None and written < count):
        raise SplitError(f"{part} needs {count or 1} images, only {written} are left")
    return shards
