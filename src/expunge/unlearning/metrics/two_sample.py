"""Whether two groups of scores look alike: Kolmogorov-Smirnov and Mann-Whitney tests.

Says how unlikely a difference is by chance, never how much it matters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, mannwhitneyu  # type: ignore[import-untyped]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TwoSampleTest:
    """A two-sided test between n and m scores."""

    statistic: float
    p_value: float
    n: int
    m: int


def kolmogorov_smirnov(first: Array, second: Array) -> TwoSampleTest:
    """Largest distance between the (n,) and (m,) scores' cumulative distributions, in [0, 1].

    The p-value is exact up to 10,000 scores a group, asymptotic beyond. Raises
    ValueError for an empty group or scores that are not finite.
    """
    _check(first, second)
    result = ks_2samp(first, second)
    return TwoSampleTest(float(result.statistic), float(result.pvalue), len(first), len(second))


def mann_whitney(first: Array, second: Array) -> TwoSampleTest:
    """Share of the n * m pairs in which the first group's score is higher; ties count half.

    The p-value is the normal approximation's with continuity and tie correction: 1 where all scores
    are equal. Raises ValueError for an empty group or scores that are not finite.
    """
    _check(first, second)
    n, m = len(first), len(second)
    if np.ptp(np.concatenate([first, second])) == 0:
        return TwoSampleTest(0.5, 1.0, n, m)
    result = mannwhitneyu(first, second, alternative="two-sided", method="asymptotic")
    return TwoSampleTest(float(result.statistic) / (n * m), float(result.pvalue), n, m)


def _check(first: Array, second: Array) -> None:
    if min(len(first), len(second)) == 0:
        raise ValueError("a two-sample test needs scores in both groups")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("scores are not finite")
