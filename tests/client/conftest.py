"""A whole service with a finished story in it: two owners were forgotten by a tiny encoder."""

import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from expunge.client import Client
from expunge.embedded.demonstration.cast import Cast, gathered
from expunge.embedded.demonstration.command import SAMPLE_FOLDER
from expunge.embedded.demonstration.setting import Setting
from expunge.embedded.demonstration.split import Sizes
from expunge.embedded.demonstration.story import Outcome, Story
from expunge.embedded.stack import Stack
from expunge.formats.shards import iter_samples, write_shard

# Tiny networks beside other processes: more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

TINY = Setting(
    sizes=Sizes(retained=48, owner=10, control=16),
    encoder={
        "objective": {"framework": "simclr", "projector_hidden": 16, "projector_dim": 8},
        "architecture": {"name": "resnet18_cifar", "width": 4},
        "image_size": 16,
    },
    pretraining={"epochs": 2, "batch_size": 16},
    unlearning={"epochs": 1, "batch_size": 16},
    views=2,
    matrix_size=8,
    batch_window_seconds=2,
)


@dataclass(frozen=True)
class Service:
    """The running service and who is in it."""

    url: str
    operator: Client
    operator_secret: str
    cast: Cast
    outcome: Outcome
    told: str
    """What the story printed."""
    folder: Path


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The story told once, everything still running."""
    with tempfile.TemporaryDirectory(prefix="expunge-tests-") as name:
        folder = Path(name)
        shards = tiny_shards(folder / "shards")
        console = Console(file=io.StringIO(), width=200)
        with (
            Stack(folder / "state", port=0) as stack,
            gathered(stack.url, stack.operator) as cast,
            Client(stack.url, stack.operator.secret) as operator,
        ):
            outcome = Story(console, TINY, 0, folder / "out", stack.logs).tell(cast, shards)
            assert isinstance(console.file, io.StringIO)
            told = console.file.getvalue()
            secret = stack.operator.secret
            yield Service(stack.url, operator, secret, cast, outcome, told, folder)


def tiny_shards(folder: Path) -> dict[str, list[Path]]:
    """The first images of each part of the bundled sample."""
    folder.mkdir()
    sizes = TINY.sizes
    counts = {
        "owner_a": sizes.owner,
        "owner_b": sizes.owner,
        "retained": sizes.retained,
        "control": sizes.control,
    }
    for part, count in counts.items():
        samples = islice(iter_samples(SAMPLE_FOLDER / f"{part}.tar"), count)
        write_shard(folder / f"{part}.tar", samples)
    return {part: [folder / f"{part}.tar"] for part in counts}
