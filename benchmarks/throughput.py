"""Images per second of one Alignment Calibration epoch: this project against the plain way.

Plain: PIL views from torchvision in a DataLoader with two workers, float32, one forward pass a
view, as in the paper's released code; `plain` makes and encodes third views for unlearn samples
only, `released` for all samples. Same network, images, batch size and loss in one run on one
machine, alternating; one warm-up of each is left out. Trains nothing that is kept.

    python benchmarks/throughput.py --data DIR_OF_SHARDS [--width 64] [--images 1024]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from expunge.unlearning.catalog import (
    AlignmentCalibrationParams,
    Architecture,
    EncoderSpec,
    SimCLR,
)
from expunge.unlearning.data.image_set import ImageSet, load_shards
from expunge.unlearning.data.views import CROP_SCALE, GREY_PROBABILITY, JITTER_PROBABILITY
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.frameworks.base import Contrast
from expunge.unlearning.frameworks.simclr import nt_xent_terms
from expunge.unlearning.hardware import precision_for, resolve_device
from expunge.unlearning.methods.alignment_calibration import calibration_losses
from expunge.unlearning.methods.base import SetSizes
from expunge.unlearning.training import unlearn
from record import conditions, summary, write

LOADER_WORKERS = 2
UNLEARN_SHARE = 0.1
IMAGE_SIZE = 32
TEMPERATURE = 0.5


class PilViews(Dataset[tuple[Tensor, Tensor, Tensor, int]]):
    """First view, second view (of another unlearn sample for unlearn ones), third view, set."""

    def __init__(self, retain: ImageSet, forget: ImageSet, spec: EncoderSpec, *, all_third: bool):
        arrays = torch.cat([retain.images, forget.images]).permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
        self.retain = len(retain)
        self.all_third = all_third
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(IMAGE_SIZE, scale=CROP_SCALE),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([jitter], p=JITTER_PROBABILITY),
                transforms.RandomGrayscale(p=GREY_PROBABILITY),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        unlearn_sample = index >= self.retain
        partner = index
        if unlearn_sample:
            partner = int(torch.randint(self.retain, len(self.images), ()))
        first = self.view(self.images[index])
        third = self.view(self.images[index]) if self.all_third or unlearn_sample else first
        return first, self.view(self.images[partner]), third, int(unlearn_sample)


def plain_epoch(
    learner: Learner,
    loader: DataLoader[tuple[Tensor, Tensor, Tensor, int]],
    sizes: SetSizes,
    params: AlignmentCalibrationParams,
    *,
    all_third: bool,
) -> float:
    """Train one epoch the plain way; images per second."""
    device = next(learner.parameters()).device
    optimiser = torch.optim.SGD(
        learner.parameters(), params.learning_rate, params.momentum, weight_decay=5e-4
    )
    images = 0
    start = time.perf_counter()
    for *views, flags in loader:
        order = flags.argsort(stable=True)
        retain = int((flags == 0).sum())
        first, second, third = (view[order].to(device) for view in views)
        if retain == len(first):
            continue
        z1, z2 = learner.projections(first), learner.projections(second)
        skipped = 0 if all_third else retain
        z3 = learner.projections(third[skipped:])[retain - skipped :]
        terms = nt_xent_terms(z1, z2, TEMPERATURE)
        contrast = Contrast(*terms, third=(z1[retain:] * z3).sum(dim=1))
        optimiser.zero_grad()
        loss = calibration_losses(contrast, retain, sizes, params)["loss"]
        loss.backward()
        optimiser.step()
        images += len(first)
    loss.item()
    return images / (time.perf_counter() - start)


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of every repeat, by way of training."""
    device = resolve_device(args.device)
    shards = sorted(args.data.glob("train-*.tar"))[: args.shards]
    images = load_shards(shards, IMAGE_SIZE).subset(range(args.images))
    forget = images.subset(range(int(args.images * UNLEARN_SHARE)))
    retain = images.subset(range(len(forget), len(images)))
    spec = EncoderSpec(
        objective=SimCLR(temperature=TEMPERATURE), architecture=Architecture(width=args.width)
    )
    params = AlignmentCalibrationParams(epochs=1, batch_size=args.batch_size)
    sizes = SetSizes(len(retain), len(forget))

    def plain(*, all_third: bool) -> Callable[[], float]:
        learner = build(spec, seed=0).to(device).train()
        loader = DataLoader(
            PilViews(retain, forget, spec, all_third=all_third),
            args.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=LOADER_WORKERS,
            persistent_workers=True,
        )
        return lambda: plain_epoch(learner, loader, sizes, params, all_third=all_third)

    learner = build(spec, seed=0)

    def ours() -> float:
        run = unlearn(
            learner, retain, forget, "alignment_calibration", params, seed=0, device=args.device
        )
        return float(run.images_per_second)

    ways = {"ours": ours, "plain": plain(all_third=False), "released": plain(all_third=True)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, way in ways.items():
            speed = way()
            print(
                f"{'warm-up' if repeat == 0 else repeat}: {name} {speed:.0f} images/s", flush=True
            )
            if repeat:
                speeds[name].append(speed)
    return speeds


def report(args: argparse.Namespace, speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Everything needed to judge and to repeat the measurement."""
    device = resolve_device(args.device)
    found = summary(speeds)
    return conditions(device, args.load, hidden=[str(args.data)]) | {
        "torchvision": torchvision.__version__,
        "precision": {"ours": precision_for(device), "plain": "float32", "released": "float32"},
        "settings": {
            "framework": "simclr",
            "architecture": f"resnet18_cifar, width {args.width}",
            "images": args.images,
            "unlearn_share": UNLEARN_SHARE,
            "batch_size": args.batch_size,
            "loader_workers": LOADER_WORKERS,
            "repeats": args.repeats,
        },
        "images_per_second": found,
        "times_faster_than_plain": round(found["ours"]["median"] / found["plain"]["median"], 2),
        "times_faster_than_released": round(
            found["ours"]["median"] / found["released"]["median"], 2
        ),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="directory of train-*.tar shards")
    parser.add_argument("--shards", type=int, default=1, help="shards to read")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", required=True, help="of the hardware, for the result's file name")
    args = parser.parse_args()
    args.load = os.getloadavg()[0]
    result = report(args, measure(args))
    closing = (
        f"**{result['times_faster_than_plain']} times** the plain way, "
        f"{result['times_faster_than_released']} times the released one "
        "(`benchmarks/throughput.py` says what each does)."
    )
    title = "Throughput of one Alignment Calibration epoch"
    write(f"throughput-{args.name}", title, result, closing)
    print(json.dumps(result["images_per_second"]))
    print(f"{result['times_faster_than_plain']} times plain")


if __name__ == "__main__":
    main()
