"""Which values the colours of a matrix stand for, in figures and terminals alike. Knows no drawing library."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.pictures.bundle import Matrix
from expunge.evidence.pictures.colours import DIVERGING, SEQUENTIAL, colours_of

STEP = 0.05
"""The ends of the scale of before and after are multiples of it."""
LEAST_REACH = 0.01
"""Of the gap's scale: rounding errors of equal encoders must not light up."""
ROUNDING = 1e-4
"""Of a step: a cosine that float32 puts just above 1 starts no new step."""


@dataclass(frozen=True)
class Scale:
    """Colours between two values; what lies beyond has the colour of the end."""

    low: float
    high: float
    anchors: tuple[str, ...]

    def share(self, values: Matrix) -> NDArray[np.float64]:
        """Where values lie from `low` (0) to `high` (1)."""
        share: NDArray[np.float64] = (values.astype(float) - self.low) / (self.high - self.low)
        return np.clip(share, 0, 1)

    def colours(self, values: Matrix) -> NDArray[np.uint8]:
        """(..., 3) uint8 sRGB."""
        return colours_of(self.share(values), self.anchors)


def alignment_scale(before: Matrix, after: Matrix) -> Scale:
    """One scale for both, so that they can be compared: from the least to the largest value."""
    low = math.floor(min(before.min(), after.min()) / STEP + ROUNDING) * STEP
    high = math.ceil(max(before.max(), after.max()) / STEP - ROUNDING) * STEP
    return Scale(low, max(high, low + STEP), SEQUENTIAL)


def gap_scale(gap: Matrix) -> Scale:
    """Centred on zero; reaches to the largest absolute value, rounded up to two digits."""
    largest = max(float(np.abs(gap).max()), LEAST_REACH)
    digit = 10.0 ** (math.floor(math.log10(largest)) - 1)
    reach = math.ceil(largest / digit - ROUNDING) * digit
    return Scale(-reach, reach, DIVERGING)
