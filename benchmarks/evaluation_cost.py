"""How much of the white-box evaluation is the encoder's forward passes, at the paper's sizes.

40,500 retained, 4,500 unlearn and 10,000 test images of random pixels with random labels: what is
measured is time, not accuracy. Forward passes are timed at `Learner.features`, views and all else
are what is left.

    python benchmarks/evaluation_cost.py --name NAME [--width 16] [--share 1.0]
"""

import argparse
import json
import os
import time

import torch
from torch import Tensor

from expunge.unlearning.catalog import Architecture, EncoderSpec, SimCLR
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.evaluation import evaluate
from expunge.unlearning.frameworks import build
from expunge.unlearning.hardware import resolve_device
from record import RESULTS, conditions

SIZES = {"retain": 40_500, "forget": 4_500, "test": 10_000}
CLASSES = 10


def main() -> None:
    """Evaluate once and write the page."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    load, device = os.getloadavg()[0], resolve_device(args.device)
    spec = EncoderSpec(objective=SimCLR(), architecture=Architecture(width=args.width))
    learner = build(spec, seed=0)
    sizes = {name: round(size * args.share) for name, size in SIZES.items()}
    sets = {name: _random(size, at) for at, (name, size) in enumerate(sizes.items())}
    spent = 0.0
    plain = learner.features

    def timed(x: Tensor) -> Tensor:
        nonlocal spent
        _wait(device)
        started = time.perf_counter()
        features = plain(x)
        _wait(device)
        spent += time.perf_counter() - started
        return features

    learner.features = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    evaluate(learner, sets["retain"], sets["forget"], sets["test"], seed=0, device=args.device)
    total = time.perf_counter() - started
    facts = conditions(device, load)
    result = {**facts, "sizes": sizes, "width": args.width, "seconds": total, "forward": spent}
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(
        "# The white-box evaluation: forward passes and the rest\n\n"
        f"{facts['hardware']}; torch {facts['torch']}; commit `{facts['commit']}`; "
        f"{facts['date']}; 1-minute load before the run {facts['load_average_before']}.\n\n"
        f"ResNet-18 of width {args.width}; {sizes}; {args.threads} threads: {total:.0f} s, of which "
        f"{spent:.0f} s, **{spent / total:.0%}**, are the encoder's forward passes.\n\n"
        f"    {facts['command']}\n"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random(size: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    return ImageSet(
        images=torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator),
        ids=torch.randint(2**62, (size,), generator=generator),
        keys=[f"{seed}-{at}" for at in range(size)],
        labels=torch.randint(CLASSES, (size,), generator=generator),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--share", type=float, default=1.0, help="of the paper's sizes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
