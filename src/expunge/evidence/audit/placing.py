"""Placing own numbers among draws of samples that the model kept, without seeing any of these.

A service's audit publishes quantiles; whoever has own outputs alone can hold their own statistics
against them. Never gives away a single sample's value.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.outputs import Floats, Level, Outputs, Reference, symmetric
from expunge.evidence.audit.permutation import PERMUTATIONS, distinct
from expunge.evidence.audit.report import AuditReport, NullQuantiles, PlacedName

Array = NDArray[np.float64]

PERCENTILES = (0.5, 1.0, 2.5, 5.0, 25.0, 50.0, 75.0, 95.0, 97.5, 99.0, 99.5)
SHARE_DIGITS = 6
"""Shares are of a few decimals; what arithmetic adds to them is no part of the answer."""
CHUNK_NUMBERS = 4_000_000
"""Looked up or multiplied at a time: 32 MB."""
GROUP = 8
"""Single samples' values are averaged in groups of so many neighbours before quantiles are taken."""


def null_quantiles(retained: Reference, n: int, seed: int) -> NullQuantiles | None:
    """Quantiles of the statistics of n samples drawn from `retained`; None if n is half of it.

    Widened around their mean by sqrt((m + n) / (m - n)): draws without replacement from m samples
    vary less than n samples that are not among them do. Kept with the reference.
    """
    key = ("null quantiles", n, seed)
    if key not in retained.kept:
        retained.kept[key] = _null_quantiles(retained, n, np.random.default_rng([seed, n, 4]))
    found: NullQuantiles | None = retained.kept[key]
    return found


def _null_quantiles(retained: Reference, n: int, rng: np.random.Generator) -> NullQuantiles | None:
    m = min(len(outputs.chosen) for outputs in retained.levels.values())
    if 2 * n > m:
        return None
    draws = np.arange(m)[:, None] if n == 1 else distinct(n, m, rng, PERMUTATIONS)
    widening = float(np.sqrt((m + n) / (m - n)))
    levels = {
        level: {
            name: _quantiles(values, n, widening)
            for name, values in _statistics(outputs, draws).items()
        }
        for level, outputs in retained.levels.items()
    }
    return NullQuantiles(n, list(PERCENTILES), levels)


def place(own: AuditReport, quantiles: NullQuantiles) -> dict[Level, dict[str, list[float]]]:
    """Per level and statistic: bounds [low, high] of the p-value of the report's own statistic.

    One-sided for the forgetting score, two-sided for the change of negative alignment. Not adjusted
    for the number of statistics. Raises ValueError if the quantiles are for another number of samples.
    """
    if own.n_own != quantiles.n:
        raise ValueError(f"quantiles for {quantiles.n} samples cannot place {own.n_own}")
    found: dict[Level, dict[str, list[float]]] = {}
    for level, statistics in quantiles.levels.items():
        group = own.levels[level].own
        values: dict[PlacedName, float] = {"forgetting_score": group.forgetting_score.mean}
        if group.negative_alignment is not None:
            values["negative_alignment_change"] = group.negative_alignment.change.mean
        found[level] = {
            name: _bounds(
                value,
                np.array(statistics[name]),
                np.array(quantiles.percentiles) / 100,
                two_sided=name == "negative_alignment_change",
            )
            for name, value in values.items()
            if name in statistics
        }
    return found


def bounds_of_all(places: Mapping[Level, Mapping[str, list[float]]]) -> list[float]:
    """Bounds of one p-value for all statistics together (Bonferroni)."""
    each = [bounds for statistics in places.values() for bounds in statistics.values()]
    ends = [min(1.0, len(each) * min(bounds[end] for bounds in each)) for end in (0, 1)]
    return [round(end, SHARE_DIGITS) for end in ends]


def pair_means(matrix: Floats, draws: NDArray[np.int64]) -> Array:
    """(B,) means of a symmetric (N, N) matrix over all pairs of different samples of (B, n) draws."""
    size = draws.shape[1]
    if size**2 < 4 * len(matrix):
        return _looked_up(matrix, draws)
    return _multiplied(matrix, draws)


def _statistics(outputs: Outputs, draws: NDArray[np.int64]) -> dict[PlacedName, Array]:
    """(B,) statistics of (B, n) draws, from what an owner has of own samples too."""
    before, after = outputs.matrices
    scores = np.diagonal(before).astype(np.float64) - np.diagonal(after)
    found: dict[PlacedName, Array] = {"forgetting_score": scores[draws].mean(axis=1)}
    if draws.shape[1] > 1:
        found["negative_alignment_change"] = pair_means(symmetric(after - before), draws)
    return found


def _looked_up(matrix: Floats, draws: NDArray[np.int64]) -> Array:
    """Pair by pair: cheaper for small draws."""
    first, second = np.triu_indices(draws.shape[1], 1)
    chunk = max(1, CHUNK_NUMBERS // len(first))
    parts = []
    for start in range(0, len(draws), chunk):
        part = draws[start : start + chunk]
        places = part[:, first] * len(matrix) + part[:, second]
        parts.append(matrix.take(places).mean(axis=1, dtype=np.float64))
    return np.concatenate(parts)


def _multiplied(matrix: Floats, draws: NDArray[np.int64]) -> Array:
    """With indicators, as a matrix product: cheaper for large draws."""
    size = draws.shape[1]
    bare = matrix.copy()
    np.fill_diagonal(bare, 0)
    chunk = max(1, CHUNK_NUMBERS // len(matrix))
    parts = []
    for start in range(0, len(draws), chunk):
        part = draws[start : start + chunk]
        drawn = np.zeros((len(part), len(matrix)), np.float32)
        np.put_along_axis(drawn, part, 1, axis=1)
        parts.append(((drawn @ bare) * drawn).sum(axis=1, dtype=np.float64))
    means: Array = np.concatenate(parts) / (size * (size - 1))
    return means


def _quantiles(values: Array, n: int, widening: float) -> list[float]:
    if n == 1:
        groups = np.array_split(np.sort(values), len(values) // GROUP)
        values = np.concatenate([np.full(len(group), group.mean()) for group in groups])
    centre = values.mean()
    found = np.percentile(centre + (values - centre) * widening, PERCENTILES)
    return [float(value) for value in found]


def _bounds(value: float, quantiles: Array, shares: Array, *, two_sided: bool) -> list[float]:
    """From the two quantiles that the value lies between."""
    below = int(np.searchsorted(quantiles, value, side="right"))
    edges = np.concatenate([[0.0], shares, [1.0]])
    ends = [1 - edges[below + 1], 1 - edges[below]]
    if two_sided:
        lower = [edges[below], edges[below + 1]]
        ends = [min(2 * min(pair), 1.0) for pair in zip(ends, lower, strict=True)]
    return [round(float(end), SHARE_DIGITS) for end in ends]
