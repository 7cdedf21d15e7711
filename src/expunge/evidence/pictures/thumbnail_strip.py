"""What stands along an axis of samples: thumbnails in a row or column, or a few numbers."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from expunge.evidence.pictures.bundle import Pixels
from expunge.evidence.pictures.sheet import DARK, MUTED, Sheet, line_height, text_width

MAX_THUMBNAILS = 40
"""Samples above which only some have their thumbnail, with their number: all would be specks."""
SHOWN_OF_MANY = 8
LARGEST = 0.5
"""Inches; a thumbnail grows no larger than this, however wide its cell."""
LEGIBLE = 0.15
"""Inches; where a cell leaves a thumbnail less, every other one stands farther out, twice as large."""
FILLED = 0.92
"""Of a cell's width at most: neighbours must not touch."""
GAP = 0.05
"""Inches between thumbnails and the matrix."""
BETWEEN = 0.02
"""Inches between two lanes of thumbnails."""
NUMBER_PT = 8.5
MAX_NUMBERS = 8
COUNT_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)

Along = Literal["rows", "columns", "below"]
"""Left of what they name, above it, or below."""
Box = tuple[float, float, float, float]
"""Left, top, width, height in inches."""


def strip_thickness(m: int, side: float, pixels: Pixels | None, along: Along) -> float:
    """Inches beside an axis of `side` inches with `m` samples."""
    thumbnails = 0.0
    if pixels is not None:
        lanes = _lanes(m, side)
        thumbnails = lanes * _thumbnail(m, side) + (lanes - 1) * BETWEEN + GAP
        if m <= MAX_THUMBNAILS:
            return thumbnails
    if along == "rows":
        return thumbnails + text_width(str(m), NUMBER_PT) + 2 * GAP
    return thumbnails + line_height(NUMBER_PT)


def paint_strip(sheet: Sheet, pixels: Pixels | None, m: int, box: Box, along: Along) -> None:
    """Fill `box` with (m, S, S, 3) thumbnails, of many samples with some of them, or with numbers."""
    thickness, side = (box[2], box[3]) if along == "rows" else (box[3], box[2])
    strip = _Strip(sheet.axes(*box), along, thickness, side / m)
    strip.axes.set_axis_off()
    if pixels is not None:
        many, size, lanes = m > MAX_THUMBNAILS, _thumbnail(m, side), _lanes(m, side)
        for sample in shown_of_many(m) if many else range(m):
            # The first one stands outside: the corner beside it belongs to the other axis too.
            lane = (lanes - 1 - sample) % lanes
            near = GAP + lane * (size + BETWEEN)
            strip.thumbnail(pixels[sample], sample, near, size, led=many or lane > 0)
        if many:
            strip.numbers(shown_of_many(m), GAP + size)
    else:
        strip.numbers([number - 1 for number in counted(m)], 0.0)
    strip.axes.set(xlim=(0, box[2]), ylim=(box[3], 0))


class _Strip:
    """Axes in inches; `cell` inches a sample. Distances are from the edge to what the strip names."""

    def __init__(self, axes: Axes, along: Along, thickness: float, cell: float) -> None:
        self.axes, self._along, self._thickness, self._cell = axes, along, thickness, cell

    def thumbnail(
        self, pixels: Pixels, sample: int, near: float, size: float, *, led: bool
    ) -> None:
        """Draw one at its cell's middle, `near` inches away, `led` to its cell by a line."""
        start, end = self._middle(sample) - size / 2, self._middle(sample) + size / 2
        low, high = sorted((self._away(near), self._away(near + size)))
        rows = self._along == "rows"
        extent = (low, high, end, start) if rows else (start, end, high, low)
        self.axes.imshow(pixels, extent=extent, aspect="auto", clip_on=False)
        if led:
            across, along = [self._away(near), self._away(0)], [self._middle(sample)] * 2
            line = (across, along) if rows else (along, across)
            self.axes.plot(*line, color=MUTED, linewidth=0.5, solid_capstyle="butt", clip_on=False)

    def numbers(self, samples: Sequence[int], near: float) -> None:
        """Number samples from 1, farther than `near` inches away."""
        rows = self._along == "rows"
        edge = self._away(near + GAP)
        for sample in samples:
            middle = self._middle(sample)
            self.axes.text(
                *((edge, middle) if rows else (middle, edge)),
                str(sample + 1),
                ha="right" if rows else "center",
                va={"rows": "center", "columns": "bottom", "below": "top"}[self._along],
                fontsize=NUMBER_PT,
                color=DARK,
            )

    def _middle(self, sample: int) -> float:
        return (sample + 0.5) * self._cell

    def _away(self, distance: float) -> float:
        return distance if self._along == "below" else self._thickness - distance


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


def shown_of_many(m: int) -> list[int]:
    """Positions of the samples whose thumbnails stand for m: the middles of equal parts."""
    return [int((part + 0.5) * m / SHOWN_OF_MANY) for part in range(SHOWN_OF_MANY)]


def _lanes(m: int, side: float) -> int:
    return 2 if m <= MAX_THUMBNAILS and side / m * FILLED < LEGIBLE else 1


def _thumbnail(m: int, side: float) -> float:
    if m > MAX_THUMBNAILS:
        return min(side / SHOWN_OF_MANY * FILLED, LARGEST)
    return min(side / m * FILLED * _lanes(m, side), LARGEST)
