"""Random training views, made in batches on the device from uint8 images.

Crop, flip and blur are separable linear maps, so each is two batched matrix products: on CPUs
several times faster than `grid_sample`. Never loops over images and never waits for the device.
"""

import math
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from expunge.unlearning.data.randomness import mix, uniforms

CROP_SCALE = (0.1, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
"""As torchvision's RandomResizedCrop; after that many misfits the whole image is used."""
FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.4, 0.1
GREY_PROBABILITY = 0.2
GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma."""
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)
BLUR_MIN_IMAGE_SIZE = 96
"""Pixels; the papers blur 224-pixel images and leave CIFAR's 32 alone."""

_JITTER_STEPS = ("brightness", "contrast", "saturation", "hue")
_ORDERS = tuple(permutations(_JITTER_STEPS))
_DRAWS = 2 * CROP_TRIES + 11
_CPU_CHUNK = 128
"""Images; a chunk and its temporaries stay in a CPU core's cache."""
_EPSILON = 1e-8


class Views:
    """Views of `science.md`: resized crop, flip, colour jitter, greyscale (and blur from 96 px).

    A view depends on (seed, sample id, view number) alone; the order of the four jitter steps is
    drawn once per view number, everything else once per image.
    """

    def __init__(
        self,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        seed: int,
    ) -> None:
        self.image_size = image_size
        self.blur = image_size >= BLUR_MIN_IMAGE_SIZE
        self._seed = seed
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)

    def __call__(self, images: Tensor, ids: Tensor, view: int) -> Tensor:
        """View number `view` of (B, 3, S, S) uint8 images with (B,) int64 ids, on their device.

        Returns (B, 3, S, S) float32, normalised by mean and std.
        """
        chunk = _CPU_CHUNK if images.device.type == "cpu" else max(1, len(images))
        starts = range(0, len(images), chunk)
        return torch.cat(
            [self.several(images[i : i + chunk], ids[i : i + chunk], [view]) for i in starts]
        )

    def several(self, images: Tensor, ids: Tensor, numbers: Sequence[int]) -> Tensor:
        """(V * B, 3, S, S) float32: view after view, as from a call for each; fastest for few images."""
        keys = [mix(self._seed, view) for view in numbers]
        draws = torch.cat([uniforms(key, ids, _DRAWS) for key in keys])
        crop, colour, blur = draws.tensor_split([2 * CROP_TRIES + 3, _DRAWS - 2], dim=1)
        x = images.to(torch.float32).mul_(1 / 255).repeat(len(numbers), 1, 1, 1)
        x = _separable(x, *_crop_weights(crop, self.image_size))
        orders = [_ORDERS[key % len(_ORDERS)] for key in keys]
        sides = zip(x.chunk(len(orders)), colour.chunk(len(orders)), orders, strict=True)
        x = torch.cat([_jitter(*each) for each in sides])
        x = _grey_some(x, colour[:, 5])
        if self.blur:
            weights = _blur_weights(blur, self.image_size)
            x = _separable(x, weights, weights)
        return x.sub_(self._mean.to(x.device)).div_(self._std.to(x.device))


class GivenViews:
    """Views that somebody else made, taken instead of `Views`; a sample's id is its place among them."""

    def __init__(
        self,
        pixels: Tensor,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        """pixels: (V, N, 3, S, S) uint8."""
        self._pixels = pixels
        self._mean, self._std = mean, std

    def several(self, images: Tensor, ids: Tensor, numbers: Sequence[int]) -> Tensor:
        """(V * B, 3, S, S) float32 on the images' device: of (B,) places, view after view."""
        places = ids.to(self._pixels.device)
        chosen = torch.cat([self._pixels[view, places] for view in numbers]).to(images.device)
        return normalise(chosen, self._mean, self._std)


def normalise(
    images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """The plain view: (B, 3, S, S) uint8 to normalised float32, nothing random."""
    x = images.to(torch.float32).mul_(1 / 255)
    shift, scale = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (mean, std))
    return x.sub_(shift).div_(scale)


def crop_boxes(draws: Tensor, size: int) -> Tensor:
    """(B, 4) float32 boxes (top, left, height, width) in whole pixels from (B, 22) uniforms.

    The first of ten candidates that fits, as torchvision draws them.
    """
    area = size * size * _between(draws[:, :CROP_TRIES], *CROP_SCALE)
    ratios = draws[:, CROP_TRIES : 2 * CROP_TRIES]
    ratio = _between(ratios, math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])).exp()
    height, width = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (height > 0) & (height <= size) & (width > 0) & (width <= size)
    first = fits.to(torch.int64).argmax(dim=1, keepdim=True)
    found = fits.gather(1, first).squeeze(1)
    h = torch.where(found, height.gather(1, first).squeeze(1), float(size))
    w = torch.where(found, width.gather(1, first).squeeze(1), float(size))
    top = (draws[:, 2 * CROP_TRIES] * (size - h + 1)).floor()
    left = (draws[:, 2 * CROP_TRIES + 1] * (size - w + 1)).floor()
    return torch.stack([top, left, h, w], dim=1)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return uniform * (high - low) + low


def _crop_weights(draws: Tensor, size: int) -> tuple[Tensor, Tensor]:
    top, left, height, width = crop_boxes(draws, size).unbind(dim=1)
    flip = draws[:, 2 * CROP_TRIES + 2] < FLIP_PROBABILITY
    rows = _linear_weights(top, height, size)
    columns = _linear_weights(left, width, size)
    return rows, torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)


def _linear_weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size, size): row i holds the bilinear weights of output pixel i over input pixels."""
    pixels = torch.arange(size, device=start.device, dtype=torch.float32)
    start, length = start.unsqueeze(1), length.unsqueeze(1)
    centre = (pixels + 0.5) * (length / size) - 0.5
    centre = centre.clamp_min(0).minimum(length - 1) + start
    return (1 - (centre.unsqueeze(2) - pixels).abs()).clamp_min_(0)


def _blur_weights(draws: Tensor, size: int) -> Tensor:
    """(B, size, size) Gaussian weights; the identity for images that stay sharp."""
    pixels = torch.arange(size, device=draws.device, dtype=torch.float32)
    sigma = _between(draws[:, 0], *BLUR_SIGMA).view(-1, 1, 1)
    weights = (-0.5 * ((pixels.unsqueeze(1) - pixels) / sigma).square()).exp()
    weights = weights / weights.sum(dim=2, keepdim=True)
    blurred = (draws[:, 1] < BLUR_PROBABILITY).view(-1, 1, 1)
    return torch.where(blurred, weights, torch.eye(size, device=draws.device))


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T for every channel: (B, 3, S, S) in and out."""
    batch, channels, size, _ = images.shape
    x = torch.bmm(images.view(batch, channels * size, size), columns.transpose(1, 2))
    x = x.view(batch, channels, size, size).transpose(1, 2).reshape(batch, size, -1)
    x = torch.bmm(rows, x).view(batch, size, channels, size)
    return x.transpose(1, 2).contiguous()


def _grey(x: Tensor) -> Tensor:
    red, green, blue = GREY_WEIGHTS
    return x[:, 0:1] * red + x[:, 1:2] * green + x[:, 2:3] * blue


def _jitter(x: Tensor, draws: Tensor, order: tuple[str, ...]) -> Tensor:
    """Colour jitter of (B, 3, S, S) in [0, 1]; unjittered images get neutral factors."""
    applied = draws[:, 0] < JITTER_PROBABILITY

    def factor(column: int, strength: float, neutral: float) -> Tensor:
        drawn = _between(draws[:, column], neutral - strength, neutral + strength)
        return torch.where(applied, drawn, neutral).view(-1, 1, 1, 1)

    brightness, contrast = factor(1, BRIGHTNESS, 1.0), factor(2, CONTRAST, 1.0)
    saturation, hue = factor(3, SATURATION, 1.0), factor(4, HUE, 0.0)
    for step in order:
        if step == "brightness":
            x = x.mul_(brightness).clamp_(0, 1)
        elif step == "contrast":
            mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
            x = x.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 1)
        elif step == "saturation":
            grey = _grey(x)
            x = x.sub_(grey).mul_(saturation).add_(grey).clamp_(0, 1)
        else:
            x = shift_hue(x, hue)
    return x


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of (B, 3, S, S) RGB in [0, 1] by (B, 1, 1, 1) `shift`, in whole turns."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    value, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    chroma = value - low
    scale = 1 / (chroma + _EPSILON)
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    ).add_(shift * 6)
    sector = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1)
    k = (hue + sector).remainder_(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def _grey_some(x: Tensor, draws: Tensor) -> Tensor:
    chosen = (draws < GREY_PROBABILITY).view(-1, 1, 1, 1)
    return torch.where(chosen, _grey(x), x)
