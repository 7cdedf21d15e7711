"""A number with what it rests on: how many samples, which seed, what interval. Pure arithmetic."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval here: two-sided, over samples, for one encoder as it is."""
PERCENT = 100.0


@dataclass(frozen=True)
class Measure:
    """One number of a table."""

    value: float
    n: int
    """Samples it was counted or averaged over."""
    seed: int
    """What every random choice behind it was drawn from."""
    interval: list[float] | None = None
    """At 95 %; None where none is given."""


def percentage(hits: int, n: int, *, seed: int) -> Measure:
    """`hits` of `n` >= 1 samples, in percent, with the Wilson score interval."""
    low, high = wilson_interval(hits, n)
    return Measure(PERCENT * hits / n, n, seed, [PERCENT * low, PERCENT * high])


def mean_of(values: NDArray[np.float64], *, seed: int) -> Measure:
    """Mean of (N,) values with the normal interval; none for a single sample."""
    n = len(values)
    mean = float(values.mean())
    if n == 1:
        return Measure(mean, n, seed)
    half = normal_quantile(CONFIDENCE) * float(values.std(ddof=1)) / sqrt(n)
    return Measure(mean, n, seed, [mean - half, mean + half])


def wilson_interval(hits: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Shares p for which `hits` of `n` are no surprise: |hits/n - p| <= z sqrt(p (1 - p) / n).

    Wilson 1927, the binomial interval that stays within [0, 1] and is usable for few samples.
    Raises ValueError without samples.
    """
    if n < 1:
        raise ValueError("a share needs at least one sample")
    z = normal_quantile(confidence)
    centre = hits + z**2 / 2
    half = z * sqrt(hits * (n - hits) / n + z**2 / 4)
    return max(0.0, (centre - half) / (n + z**2)), min(1.0, (centre + half) / (n + z**2))


def normal_quantile(confidence: float) -> float:
    """Standard deviations that hold the central share `confidence` of a normal distribution."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
