"""How training varies images, framework by framework: contrastive views, flips, or crops and flips."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.randomness import mix, uniforms
from expunge.unlearning.data.views import FLIP_PROBABILITY, Views, normalise

CROP_PADDING = 4
"""Black pixels on each side before a random crop to the old size, the usual CIFAR augmentation."""

Augmentation = Callable[[Tensor, Tensor, int], Tensor]
"""(B, 3, S, S) uint8 images, (B,) int64 sample ids and a view's number to normalised float32."""


def training_views(spec: EncoderSpec, *, seed: int) -> Augmentation:
    """What encoders of `spec` are trained on; a view depends on seed, sample id and number alone."""
    if spec.augmentation == "contrastive":
        return Views(spec.image_size, spec.mean, spec.std, seed=seed)
    cropped = spec.augmentation == "crop_and_flip"

    def augment(images: Tensor, ids: Tensor, number: int) -> Tensor:
        draws = uniforms(mix(seed, number), ids, 3)
        changed = crop_and_flip(images, draws) if cropped else flip(images, draws[:, 2])
        return normalise(changed, spec.mean, spec.std)

    return augment


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """(B, 3, S, S) to the same, mirrored left to right where the (B,) uniform is below 0.5."""
    mirrored = (draws < FLIP_PROBABILITY).view(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(3), images)


def crop_and_flip(images: Tensor, draws: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 to the same: padded by four, cropped back, flipped with probability 0.5.

    draws: (B, 3) uniforms in [0, 1) for the crop's top and left and for the flip.
    """
    size = images.shape[-1]
    padded = F.pad(images, [CROP_PADDING] * 4)
    pixels = torch.arange(size, device=images.device)
    top, left = (draws[:, :2] * (2 * CROP_PADDING + 1)).long().unbind(dim=1)
    flipped = (draws[:, 2] < FLIP_PROBABILITY).view(-1, 1)
    rows = top.view(-1, 1) + pixels
    columns = left.view(-1, 1) + torch.where(flipped, pixels.flip(0), pixels)
    sample = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    cropped: Tensor = padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return cropped
