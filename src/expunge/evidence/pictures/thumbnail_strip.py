"""What stands along an axis of samples: thumbnails in a row or column, or a few numbers."""

from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from expunge.evidence.pictures.bundle import Pixels
from expunge.evidence.pictures.sheet import DARK, Sheet, line_height, text_width

LARGEST = 0.5
"""Inches; a thumbnail grows no larger than this, however wide its cell."""
FILLED = 0.92
"""Of a cell's width at most: neighbours must not touch."""
GAP = 0.05
"""Inches between thumbnails and the matrix."""
NUMBER_PT = 8.5
MAX_NUMBERS = 8
COUNT_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)

Along = Literal["rows", "columns"]
Box = tuple[float, float, float, float]
"""Left, top, width, height in inches."""


def strip_thickness(m: int, side: float, pixels: Pixels | None, along: Along) -> float:
    """Inches beside an axis of `side` inches with `m` samples."""
    if pixels is not None:
        return _thumbnail(m, side) + GAP
    if along == "columns":
        return line_height(NUMBER_PT)
    return text_width(str(m), NUMBER_PT) + 2 * GAP


def paint_strip(sheet: Sheet, pixels: Pixels | None, m: int, box: Box, along: Along) -> None:
    """Fill `box` with the (m, S, S, 3) thumbnails, or with some of the numbers 1 to m."""
    axes = sheet.axes(*box)
    axes.set_axis_off()
    rows = along == "rows"
    thickness, side = (box[2], box[3]) if rows else (box[3], box[2])
    if pixels is not None:
        upright = pixels if rows else pixels.swapaxes(1, 2)
        unit = _thumbnail(m, side)
        strip = _strip(upright, side / m / unit, thickness / unit)
        axes.imshow(strip if rows else strip.swapaxes(0, 1), aspect="auto")
        return
    axes.set(xlim=(0, box[2]), ylim=(box[3], 0))
    for number in counted(m):
        at = (number - 0.5) * side / m
        axes.text(
            *((thickness - GAP, at) if rows else (at, thickness - GAP)),
            str(number),
            ha="right" if rows else "center",
            va="center" if rows else "bottom",
            fontsize=NUMBER_PT,
            color=DARK,
        )


def ticks(low: float, high: float, count: int = 5) -> NDArray[np.float64]:
    """About `count` round values within [low, high]."""
    at = np.asarray(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    slack = (high - low) * 1e-6
    inside: NDArray[np.float64] = at[(at >= low - slack) & (at <= high + slack)]
    return inside


def counted(m: int) -> list[int]:
    """At most about eight round numbers from 1 to m, 1 itself among them."""
    step = next((step for step in COUNT_STEPS if m / step <= MAX_NUMBERS), COUNT_STEPS[-1])
    return [1, *(number for number in range(step, m + 1, step) if number > 1)]


def _thumbnail(m: int, side: float) -> float:
    return min(side / m * FILLED, LARGEST)


def _strip(pixels: Pixels, cell: float, thickness: float) -> Pixels:
    """(m · cell, thickness, 3) pixels, both in thumbnails: each at its cell's middle, at the left."""
    m, size = len(pixels), pixels.shape[1]
    length = max(size, round(size * cell))
    strip = np.full((m, length, max(size, round(size * thickness)), 3), 255, np.uint8)
    start = (length - size) // 2
    strip[:, start : start + size, :size] = pixels
    return strip.reshape(m * length, -1, 3)
