"""An alignment matrix in a terminal: coloured half blocks, or letters where there is no colour."""

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style

from expunge.evidence.pictures.scales import Scale

MAX_SIDE = 48
UPPER_HALF = "▀"
SHADES = " .:-=+*#%@"
"""From the lowest value to the highest; each is printed twice, so that a cell is about square."""


def heat_map(
    matrix: npt.NDArray[np.float32], scale: Scale, *, max_side: int = MAX_SIDE
) -> Segments:
    """Draw an (m, m) matrix, two rows a line, at most `max_side` columns (blocks are averaged)."""
    shrunk = shrink(matrix, max_side)
    colours = [[Color.from_rgb(*map(int, rgb)) for rgb in row] for row in scale.colours(shrunk)]
    segments = []
    for row in range(0, len(colours), 2):
        below = colours[row + 1] if row + 1 < len(colours) else [None] * len(colours[row])
        for upper, lower in zip(colours[row], below, strict=True):
            segments.append(Segment(UPPER_HALF, Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)


def letter_map(
    matrix: npt.NDArray[np.float32], scale: Scale, *, max_side: int = MAX_SIDE // 2
) -> str:
    """As `heat_map` for output without colours: one line a row, from `SHADES`."""
    share = scale.share(shrink(matrix, max_side))
    steps = np.minimum((share * len(SHADES)).astype(int), len(SHADES) - 1)
    return "\n".join("".join(SHADES[step] * 2 for step in row) for row in steps)


def shrink(matrix: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """The matrix averaged over blocks so that it has at most `side` rows and columns."""
    size = matrix.shape[0]
    if size <= side:
        return matrix
    edges = np.linspace(0, size, side + 1).astype(int)[:-1]
    counts = np.diff([*edges, size])
    sums = np.add.reduceat(np.add.reduceat(matrix, edges, axis=0), edges, axis=1)
    averaged: npt.NDArray[np.float32] = (sums / np.outer(counts, counts)).astype(np.float32)
    return averaged
