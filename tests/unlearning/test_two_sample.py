from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.unlearning.metrics.two_sample import kolmogorov_smirnov, mann_whitney

Array = NDArray[np.float64]


def slow_distance(first: Array, second: Array) -> float:
    """Largest difference between the shares of scores at or below any score, counted."""
    return max(
        abs(sum(a <= t for a in first) / len(first) - sum(b <= t for b in second) / len(second))
        for t in [*first, *second]
    )


def slow_share(first: Array, second: Array) -> float:
    """Pairs in which the first is higher, counted one by one; ties count half."""
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second)
    return won / (len(first) * len(second))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (5, 5), (12, 7), (40, 40)])
@pytest.mark.parametrize("decimals", [1, 8])
def test_statistics_equal_naive_counting(n: int, m: int, decimals: int) -> None:
    rng = np.random.default_rng(n * m)
    first, second = rng.normal(size=n).round(decimals), rng.normal(0.5, size=m).round(decimals)
    distance, share = kolmogorov_smirnov(first, second), mann_whitney(first, second)
    assert distance.statistic == pytest.approx(slow_distance(first, second))
    assert share.statistic == pytest.approx(slow_share(first, second))
    for result in (distance, share):
        assert (result.n, result.m) == (n, m)
        assert 0 <= result.p_value <= 1


def test_p_values_equal_those_over_every_way_to_split_the_scores() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=6), rng.normal(0.8, size=5)
    every = np.concatenate([first, second])
    splits = []
    for chosen in combinations(range(11), 6):
        mask = np.isin(np.arange(11), chosen)
        splits.append((every[mask], every[~mask]))
    observed = slow_distance(first, second)
    exact = np.mean([slow_distance(a, b) >= observed - 1e-12 for a, b in splits])
    assert kolmogorov_smirnov(first, second).p_value == pytest.approx(exact)
    off = abs(slow_share(first, second) - 0.5)
    exact = np.mean([abs(slow_share(a, b) - 0.5) >= off - 1e-12 for a, b in splits])
    assert mann_whitney(first, second).p_value == pytest.approx(exact, abs=0.05)


def test_equal_distributions_are_rarely_told_apart_and_shifted_ones_always() -> None:
    rng = np.random.default_rng(2)
    for test in (kolmogorov_smirnov, mann_whitney):
        same = [test(rng.normal(size=80), rng.normal(size=80)).p_value < 0.05 for _ in range(200)]
        assert 0.005 < np.mean(same) < 0.1
        assert test(rng.normal(size=80), rng.normal(1.5, size=80)).p_value < 1e-6


def test_equal_scores_are_no_evidence() -> None:
    same = np.full(6, 0.3)
    assert mann_whitney(same, same).p_value == 1
    assert mann_whitney(same, same).statistic == 0.5
    assert kolmogorov_smirnov(same, same).p_value == 1


def test_scores_that_cannot_be_compared_are_refused() -> None:
    for test in (kolmogorov_smirnov, mann_whitney):
        with pytest.raises(ValueError, match="both groups"):
            test(np.empty(0), np.ones(2))
        with pytest.raises(ValueError, match="not finite"):
            test(np.array([1.0, np.nan]), np.ones(2))
