"""What snapshots cost a run: the same unlearning without them, at the service's interval, and at a short one.

Alignment Calibration of SimCLR on real images, at two widths of ResNet-18. Writing is timed where it
happens; the runs' whole times stand beside it, but vary by more than snapshots cost.

    python benchmarks/snapshot_cost.py --data DIR_OF_SHARDS --name NAME [--widths 16 64] [--seconds 34]
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.registry.settings import Settings
from expunge.unlearning.catalog import Architecture, EncoderSpec, SimCLR
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.snapshots import SnapshotFile, Snapshots
from expunge.unlearning.training import unlearn
from record import RESULTS, conditions

METHOD = "alignment_calibration"
UNLEARN_SHARE = 0.1
BATCH = 128
SHORT_SECONDS = 2.0
AIM_PERCENT = 3.0
PERCENT, MILLI, MEGA = 100, 1e3, 1e6


@dataclass(frozen=True)
class Cost:
    """One run; times in seconds."""

    width: int
    interval: float | None
    steps: int
    run: float
    writes: list[float]
    bytes: int

    @property
    def percent(self) -> float:
        """Of the run's time, for writing."""
        return PERCENT * sum(self.writes) / self.run


def main() -> None:
    """Measure every width at every interval and write the page."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    # Of the class, not of this process's environment: the default is what the page is about.
    default = float(Settings.model_fields["snapshot_seconds"].default)
    costs = []
    for width in args.widths:
        costs += _costs(width, [None, default, SHORT_SECONDS], args)
    facts = conditions(resolve_device(args.device), load, hidden=[str(args.data)])
    runs = [{**asdict(cost), "percent": cost.percent} for cost in costs]
    RESULTS.mkdir(exist_ok=True)
    result = json.dumps({**facts, "runs": runs}, indent=2)
    (RESULTS / f"{args.name}.json").write_text(result + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(costs, facts, args))


def _costs(width: int, intervals: list[float | None], args: argparse.Namespace) -> list[Cost]:
    spec = EncoderSpec(objective=SimCLR(), architecture=Architecture(width=width))
    images = load_for(spec, sorted(args.data.glob("train-*.tar"))[:1]).subset(range(args.images))
    learner = build(spec, seed=0)
    # The first epoch of a process is slower than those that follow.
    _run(learner, images, 1, None, args)
    epoch = _run(learner, images, 1, None, args)
    epochs = math.ceil(args.seconds / epoch.run)
    return [_run(learner, images, epochs, interval, args) for interval in intervals]


def _run(
    learner: Learner,
    images: ImageSet,
    epochs: int,
    interval: float | None,
    args: argparse.Namespace,
) -> Cost:
    cut = round(UNLEARN_SHARE * len(images))
    forget, retain = images.subset(range(cut)), images.subset(range(cut, len(images)))
    sizes = [0]
    with tempfile.TemporaryDirectory(dir=args.work) as folder, _timed_writes() as writes:
        path = Path(folder) / "snapshot"
        kept = None
        if interval is not None:
            kept = Snapshots(path, interval, on_written=lambda _: sizes.append(path.stat().st_size))
        result = unlearn(
            learner,
            retain,
            forget,
            METHOD,
            {"epochs": epochs, "batch_size": BATCH},
            seed=0,
            device=args.device,
            snapshots=kept,
        )
    width = getattr(learner.spec.architecture, "width", 0)
    return Cost(width, interval, result.steps, result.seconds, writes, max(sizes))


@contextmanager
def _timed_writes() -> Iterator[list[float]]:
    """Seconds of each snapshot that is written in the block, copying, hashing and syncing included."""
    seconds: list[float] = []
    plain = SnapshotFile.write

    def timed(file: SnapshotFile, *state: Any) -> None:
        started = time.perf_counter()
        plain(file, *state)
        seconds.append(time.perf_counter() - started)

    SnapshotFile.write = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        SnapshotFile.write = plain  # type: ignore[method-assign]


def _page(costs: list[Cost], facts: dict[str, Any], args: argparse.Namespace) -> str:
    rows = []
    without = {cost.width: cost.run for cost in costs if cost.interval is None}
    for cost in costs:
        if cost.interval is None:
            rows.append(f"| {cost.width} | none | {cost.run:.1f} | | | | | |")
            continue
        rows.append(
            f"| {cost.width} | {cost.interval:g} | {cost.run:.1f} "
            f"| {PERCENT * (cost.run / without[cost.width] - 1):+.1f} "
            f"| {len(cost.writes)} | {cost.bytes / MEGA:.1f} "
            f"| {MILLI * max(cost.writes, default=0):.0f} | **{cost.percent:.2f}** |"
        )
    return (
        "# What snapshots cost\n\n"
        f"{facts['hardware']}; torch {facts['torch']}; commit `{facts['commit']}`; {facts['date']}; "
        f"1-minute load before the run {facts['load_average_before']}.\n\n"
        "| width | every s | run s | against none, % | snapshots | MB each | ms, slowest "
        "| **writing, % of the run** |\n|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe aim is {AIM_PERCENT:g} % at most. After a snapshot that took t seconds none is written "
        f"for t / {Snapshots.max_share:g} seconds, which stretches the short interval where writing "
        "takes long. What counts is the last column, writing alone (copy, SHA-256, write, sync): runs "
        "differ from one another by more than that.\n\n"
        f"{METHOD} of SimCLR, {args.images} images, {UNLEARN_SHARE:.0%} of them to be unlearned, "
        f"batch {BATCH}, {args.threads} threads.\n\n"
        f"    {facts['command']}\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 shards")
    parser.add_argument("--name", required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=34.0, help="of each run, about")
    parser.add_argument("--work", type=Path, help="folder on the disk to write to")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
