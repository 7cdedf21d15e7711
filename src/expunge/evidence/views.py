"""Whether a view was made from a registered image: compared with the same crop of it. Never encodes anything."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma."""
MIN_CORRELATION = 0.85
"""Over 50,000 training views of CIFAR-10, 99.6 % of own ones reach it, and 0.002 % of those of another image."""
MIN_CONTRAST = 0.02
"""Standard deviation of grey values, of 1: a flatter crop (0.1 % of CIFAR-10's) looks like any other."""


@dataclass(frozen=True)
class Agreement:
    """How alike N views and the crops that they are said to be are.

    correlation: (N,) of grey values, brightness and contrast removed; contrast: (N,) standard
    deviation of the crop's grey values, of 1.
    """

    correlation: Floats
    contrast: Floats

    @property
    def made_from(self) -> NDArray[np.bool_]:
        """(N,) whether the view is let through: alike enough, and not too flat to tell."""
        alike = self.correlation >= MIN_CORRELATION
        return alike & (self.contrast >= MIN_CONTRAST)


def agreement(
    views: Bytes, images: Bytes, boxes: NDArray[np.int64], flips: NDArray[np.bool_]
) -> Agreement:
    """Compare (N, S, S, 3) uint8 views with crops of (N, S, S, 3) uint8 images.

    boxes: (N, 4) top, left, height, width in whole pixels; flips: (N,) whether left and right are
    exchanged afterwards. A crop is brought to S pixels bilinearly, as training views are.
    """
    crops = _cropped(_grey(images), boxes, flips)
    contrast = crops.std(axis=(1, 2))
    product = (_standardised(_grey(views)) * _standardised(crops)).sum(axis=(1, 2))
    return Agreement(product.astype(np.float32), contrast.astype(np.float32))


def _grey(images: Bytes) -> Floats:
    weights = np.array(GREY_WEIGHTS, dtype=np.float32) / np.float32(255)
    return np.asarray(images.astype(np.float32) @ weights, dtype=np.float32)


def _standardised(grey: Floats) -> Floats:
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt(np.square(centred).sum(axis=(1, 2), keepdims=True))
    standardised = centred / np.maximum(length, np.float32(1e-6))
    return np.asarray(standardised, dtype=np.float32)


def _cropped(grey: Floats, boxes: NDArray[np.int64], flips: NDArray[np.bool_]) -> Floats:
    size = grey.shape[1]
    rows = _linear_weights(boxes[:, 0], boxes[:, 2], size)
    straight = _linear_weights(boxes[:, 1], boxes[:, 3], size)
    columns = np.where(flips[:, None, None], straight[:, ::-1], straight)
    return np.asarray(rows @ grey @ columns.transpose(0, 2, 1), dtype=np.float32)


def _linear_weights(start: NDArray[np.int64], length: NDArray[np.int64], size: int) -> Floats:
    """(N, S, S): row i holds the bilinear weights of output pixel i over input pixels."""
    pixels = np.arange(size, dtype=np.float32)
    begin, extent = (each.astype(np.float32)[:, None] for each in (start, length))
    centre = np.clip((pixels + 0.5) * (extent / size) - 0.5, 0, extent - 1) + begin
    weights = np.maximum(1 - np.abs(centre[:, :, None] - pixels), 0)
    return np.asarray(weights, dtype=np.float32)
