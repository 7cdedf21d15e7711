"""An alignment matrix in a terminal: coloured half blocks, or letters where there is no colour."""

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style

MAX_SIDE = 48
UPPER_HALF = "▀"
SHADES = " .:-=+*#%@"
"""From the lowest value to the highest; each is printed twice, so that a cell is about square."""
# Blue - white - red: differences from zero read as well as their sign.
NEGATIVE_RGB, ZERO_RGB, POSITIVE_RGB = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def heat_map(
    matrix: npt.NDArray[np.float32], *, limit: float | None = None, max_side: int = MAX_SIDE
) -> Segments:
    """Draw an (m, m) matrix, two rows a line, at most `max_side` columns (blocks are averaged).

    Args:
        limit: the absolute value that gets the full colour; the matrix's own maximum if None.
    """
    shrunk = shrink(matrix, max_side)
    bound = limit or float(np.abs(shrunk).max()) or 1.0
    colours = [[_colour(value / bound) for value in row] for row in shrunk]
    segments = []
    for row in range(0, len(colours), 2):
        below = colours[row + 1] if row + 1 < len(colours) else [None] * len(colours[row])
        for upper, lower in zip(colours[row], below, strict=True):
            segments.append(Segment(UPPER_HALF, Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)


def letter_map(
    matrix: npt.NDArray[np.float32], *, limit: float | None = None, max_side: int = MAX_SIDE // 2
) -> str:
    """As `heat_map` for output without colours: one line a row, from `SHADES`."""
    shrunk = shrink(matrix, max_side)
    bound = limit or float(np.abs(shrunk).max()) or 1.0
    share = np.clip((shrunk / bound + 1) / 2, 0, 1)
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


def _colour(value: float) -> Color:
    """`value` in [-1, 1]; beyond is clipped."""
    end = POSITIVE_RGB if value >= 0 else NEGATIVE_RGB
    share = min(1.0, abs(float(value)))
    red, green, blue = (
        round(zero + share * (full - zero)) for zero, full in zip(ZERO_RGB, end, strict=True)
    )
    return Color.from_rgb(red, green, blue)
