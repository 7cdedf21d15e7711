"""Images per second of random training views alone: ours, kornia, torchvision on PIL images.

The same four augmentations (resized crop, flip, colour jitter, greyscale, normalised) of the same
32-pixel images in one run on one machine, alternating; one warm-up of each is left out. PIL runs in
one process, as one of a DataLoader's workers would.

    python benchmarks/views.py [--images 2048] [--repeats 7] --name NAME
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from expunge.embedded import demonstration
from expunge.unlearning.catalog import IMAGENET_MEAN, IMAGENET_STD
from expunge.unlearning.data.image_set import ImageSet, load_shards
from expunge.unlearning.data.views import CROP_SCALE, GREY_PROBABILITY, JITTER_PROBABILITY, Views
from expunge.unlearning.hardware import resolve_device
from record import conditions, summary, write

SAMPLE = Path(demonstration.__file__).parents[1] / "sample" / "control.tar"
SIZE = 32
JITTER = (0.4, 0.4, 0.4, 0.1)
PIL_SHARE = 4
"""PIL gets a quarter of the images: it is slow, and its speed does not depend on their number."""


def ours(images: ImageSet) -> Callable[[], int]:
    """Views as the training loop makes them."""
    views = Views(SIZE, IMAGENET_MEAN, IMAGENET_STD, seed=0)

    def make() -> int:
        views(images.images, images.ids, 0)
        return len(images)

    return make


def with_kornia(images: ImageSet) -> Callable[[], int]:
    """The same from kornia's batched augmentations."""
    pipeline = nn.Sequential(
        K.RandomResizedCrop((SIZE, SIZE), scale=CROP_SCALE),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER, p=JITTER_PROBABILITY),
        K.RandomGrayscale(p=GREY_PROBABILITY),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
    )

    def make() -> int:
        x: Tensor = images.images.float() / 255
        pipeline(x)
        return len(images)

    return make


def with_pil(images: ImageSet) -> Callable[[], int]:
    """The same from torchvision, image by image."""
    some = images.images[: len(images) // PIL_SHARE].permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(np.ascontiguousarray(each)) for each in some]
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=CROP_SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=JITTER_PROBABILITY),
            transforms.RandomGrayscale(p=GREY_PROBABILITY),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def make() -> int:
        for picture in pictures:
            view(picture)
        return len(pictures)

    return make


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", required=True, help="of the hardware, for the result's file name")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    device = resolve_device(args.device)
    stored = load_shards([SAMPLE], SIZE)
    images = stored.subset([i % len(stored) for i in range(args.images)]).to(device)
    ways = {"ours": ours(images), "kornia": with_kornia(images), "PIL": with_pil(images)}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(args.repeats + 1):
        for way, make in ways.items():
            start = time.perf_counter()
            count = make()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                speeds[way].append(count / (time.perf_counter() - start))
    result = conditions(device, load) | {
        "settings": {"images": args.images, "image_size": SIZE, "repeats": args.repeats},
        "images_per_second": summary(speeds),
    }
    medians = {way: found["median"] for way, found in result["images_per_second"].items()}
    closing = (
        f"**{medians['ours'] / medians['kornia']:.2f} times** kornia, "
        f"{medians['ours'] / medians['PIL']:.1f} times one process of PIL."
    )
    write(f"views-{args.name}", "Throughput of random views", result, closing)
    print(medians, closing)


if __name__ == "__main__":
    main()
