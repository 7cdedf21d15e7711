"""What an epoch of each method costs per retained image, against an epoch of pre-training.

All in one run on one machine, alternating, one warm-up of each left out; a tenth of the images is
to be unlearned. An epoch of Alignment Calibration shows every retained image twice, as pre-training
does, and every unlearn image three times.

    python benchmarks/epoch_cost.py --data DIR_OF_SHARDS --name NAME [--width 16] [--images 1024]
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import torch

from expunge.unlearning.catalog import METHODS, Architecture, EncoderSpec, MoCo, SimCLR
from expunge.unlearning.data.batches import plan_batches
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.training import pretrain, unlearn
from record import RESULTS, conditions

UNLEARN_SHARE = 0.1
METHODS_OF_BOTH_SETS = {"alignment_calibration", "neg_grad", "gradient_penalty"}
AIM = 1.35
"""At most so many times pre-training, for Alignment Calibration."""


def main() -> None:
    """Measure both frameworks and write the page."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    rows, medians = [], {}
    for framework, objective in {"simclr": SimCLR(), "moco": MoCo(queue_size=1024)}.items():
        spec = EncoderSpec(objective=objective, architecture=Architecture(width=args.width))
        images = load_for(spec, sorted(args.data.glob("train-*.tar"))[:1])
        images = images.subset(range(args.images))
        ratios = _ratios(spec, images, args)
        for method, values in ratios.items():
            median = statistics.median(values)
            medians[f"{framework}/{method}"] = values
            rows.append(
                f"| {framework} | {method} | {median:.2f} | {min(values):.2f} to {max(values):.2f} |"
            )
    facts = conditions(resolve_device(args.device), load, hidden=[str(args.data)])
    (RESULTS / f"{args.name}.json").write_text(
        json.dumps({**facts, "ratios": medians}, indent=2) + "\n"
    )
    settings = (
        f"width {args.width}, {args.images} images, {UNLEARN_SHARE:.0%} of them to be unlearned, "
        f"batch {args.batch}, {args.threads} threads, {args.repeats} repeats."
    )
    (RESULTS / f"{args.name}.md").write_text(
        "# What an epoch costs per retained image, against pre-training\n\n"
        f"{facts['hardware']}; torch {facts['torch']}; commit `{facts['commit']}`; "
        f"{facts['date']}; 1-minute load before the run {facts['load_average_before']}.\n\n"
        "| framework | method | times pre-training, median | range |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe aim for Alignment Calibration is {AIM} at most. {settings}\n\n"
        f"    {facts['command']}\n"
    )


def _ratios(
    spec: EncoderSpec, images: ImageSet, args: argparse.Namespace
) -> dict[str, list[float]]:
    unlearn_size = round(UNLEARN_SHARE * len(images))
    forget = images.subset(range(unlearn_size))
    retain = images.subset(range(unlearn_size, len(images)))
    shared = {"epochs": 1, "batch_size": args.batch}
    # With a queue that is filled: an empty one is filled first, which is no part of an epoch.
    learner = pretrain(spec, images, shared, seed=0, device=args.device).learner
    methods = [m.id for m in METHODS.values() if spec.framework in m.frameworks]
    ratios: dict[str, list[float]] = {
        m: [] for m in methods if m not in ("retrain", "gradient_ascent")
    }
    for repeat in range(args.repeats + 1):
        base = pretrain(spec, retain, shared, seed=repeat, device=args.device).seconds
        base /= _retained_shown(len(retain), 0, args.batch)
        for method, values in ratios.items():
            run = unlearn(learner, retain, forget, method, shared, seed=repeat, device=args.device)
            if repeat:
                other = unlearn_size if METHODS_OF_BOTH_SETS & {method} else 0
                values.append(run.seconds / _retained_shown(len(retain), other, args.batch) / base)
    return ratios


def _retained_shown(retain: int, unlearn_size: int, batch: int) -> int:
    """Retained images of one epoch; the last incomplete batch is dropped."""
    plan = plan_batches(retain, unlearn_size, batch)
    return plan.steps * plan.retain


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 shards")
    parser.add_argument("--name", required=True)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
