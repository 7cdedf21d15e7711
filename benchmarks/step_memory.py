"""Memory and time of one training step whose activations are made anew, against a plain one.

Each step in a process of its own, after a tiny one that brings everything into memory; what the step
adds to the process's peak (on a GPU: to the allocator's) counts, and the CPU time of both passes.

    python benchmarks/step_memory.py --name NAME [--device cpu] [--share 1]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from expunge.unlearning.catalog import CLIP, Architecture, EncoderSpec, MoCo, SimCLR
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.frameworks.architectures import lay_out
from expunge.unlearning.hardware import autocast, precision_for, resolve_device
from expunge.unlearning.recomputation import recomputing
from record import RESULTS, conditions

MIB = 2**20
CASES = {
    "SimCLR, ResNet-18 of width 64, 32 pixels": (
        EncoderSpec(objective=SimCLR(), architecture=Architecture(width=64)),
        128,
    ),
    "MoCo, ResNet-18 of width 64, 32 pixels": (
        EncoderSpec(objective=MoCo(), architecture=Architecture(width=64)),
        128,
    ),
    "SimCLR, ResNet-50, 96 pixels": (
        EncoderSpec(objective=SimCLR(), architecture=Architecture(name="resnet50"), image_size=96),
        32,
    ),
    "CLIP, four and three layers, 64 pixels": (
        EncoderSpec(objective=CLIP(context_length=32), image_size=64),
        128,
    ),
}
"""Encoder, and samples in a batch."""


def main() -> None:
    """Measure every case both ways and write the page, or measure one, as this process's child."""
    args = _arguments()
    if args.case is not None:
        sys.stdout.write(json.dumps(measure(*CASES[args.case], args)))
        return
    load, found = os.getloadavg()[0], {}
    for case in CASES:
        plain, anew = (_in_a_child(case, args, way) for way in ((), ("--recompute",)))
        found[case] = {"plain": plain, "recomputed": anew}
    facts = conditions(resolve_device(args.device), load)
    (RESULTS / f"{args.name}.json").write_text(
        json.dumps({**facts, "steps": found}, indent=2) + "\n"
    )
    rows = "\n".join(_row(case, each["plain"], each["recomputed"]) for case, each in found.items())
    (RESULTS / f"{args.name}.md").write_text(
        "# What making activations anew saves, and costs\n\n"
        f"{facts['hardware']}; torch {facts['torch']}; commit `{facts['commit']}`; "
        f"{facts['date']}; 1-minute load before the run {facts['load_average_before']}.\n\n"
        "| step | samples | MiB, plain | MiB, anew | ratio | CPU time, times the plain one |\n"
        f"|---|---|---|---|---|---|\n{rows}\n\nOne thread; one run each.\n\n"
        f"    {facts['command']}\n"
    )


def _in_a_child(case: str, args: argparse.Namespace, way: tuple[str, ...]) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--name", args.name, "--case", case, *way]
    command += ["--device", args.device, "--share", str(args.share)]
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(made.stdout)
    return found


def measure(spec: EncoderSpec, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """MiB and seconds of CPU time of one forward and backward pass."""
    torch.set_num_threads(1)
    device = resolve_device(args.device)
    learner = build(spec, seed=0).to(device).train()
    lay_out(learner, bn_splits=learner.bn_splits)
    with recomputing(learner) if args.recompute else nullcontext():
        _step(learner, 2, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before, started = _peak(device), time.process_time()
        samples = round(batch * args.share)
        _step(learner, samples, device)
        seconds = time.process_time() - started
        return {"samples": samples, "mib": _peak(device) - before, "seconds": seconds}


def _step(learner: Learner, samples: int, device: torch.device) -> None:
    size = learner.spec.image_size
    first = torch.rand(samples, 3, size, size, device=device)
    with autocast(device, precision_for(device)):
        contrast = learner.contrast(
            first, _second(learner, first), torch.arange(samples, device=device)
        )
    contrast.mean_loss().backward()


def _second(learner: Learner, first: Tensor) -> Tensor:
    if learner.spec.framework != "clip":
        return torch.rand_like(first)
    length = learner.spec.objective.context_length
    texts = [f"picture number {number}" for number in range(len(first))]
    return tokenise(texts, length).tokens.to(first.device)


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def _row(case: str, plain: dict[str, float], anew: dict[str, float]) -> str:
    saved, cost = anew["mib"] / plain["mib"], anew["seconds"] / plain["seconds"]
    numbers = f"{plain['mib']:.0f} | {anew['mib']:.0f} | {saved:.2f} | {cost:.2f}"
    return f"| {case} | {plain['samples']:.0f} | {numbers} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--share", type=float, default=1.0, help="of the samples in a batch")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
