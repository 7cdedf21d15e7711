"""Placing own numbers among draws of samples that the model kept, without seeing any of these.

A service's audit publishes quantiles; whoever has own outputs alone can hold their own statistics
against them. Never gives away a single sample's value.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.looks import LOOKS, Pool, draw_means
from expunge.evidence.audit.outputs import Level, Reference
from expunge.evidence.audit.permutation import PERMUTATIONS, distinct
from expunge.evidence.audit.report import AuditReport, NullQuantiles

Array = NDArray[np.float64]

PERCENTILES = (0.5, 1.0, 2.5, 5.0, 25.0, 50.0, 75.0, 95.0, 97.5, 99.0, 99.5)
GROUP = 8
"""Single samples' values are averaged in groups of so many neighbours before quantiles are taken."""


def null_quantiles(retained: Reference, n: int, rng: np.random.Generator) -> NullQuantiles | None:
    """Quantiles of the statistics of n samples drawn from `retained`; None if n is half of it.

    Widened around their mean by sqrt((m + n) / (m - n)): draws without replacement from m samples
    vary less than n samples that are not among them do.
    """
    m = min(len(outputs.chosen) for outputs in retained.levels.values())
    if 2 * n > m:
        return None
    draws = np.arange(m)[:, None] if n == 1 else distinct(n, m, rng, PERMUTATIONS)
    levels: dict[Level, Any] = {}
    for level, outputs in retained.levels.items():
        pool = Pool.alone(outputs)
        levels[level] = {
            look.name: _quantiles(
                draw_means(look, look.measure(pool), draws), n, np.sqrt((m + n) / (m - n))
            )
            for look in LOOKS
            if not look.pooled and (n > 1 or not look.paired)
        }
    return NullQuantiles(n, list(PERCENTILES), levels)


def place(own: AuditReport, quantiles: NullQuantiles) -> dict[Level, dict[str, list[float]]]:
    """Per level and statistic: bounds [low, high] of the p-value of the report's own statistic.

    One-sided for the forgetting score, two-sided for the change of negative alignment. Not adjusted
    for the number of looks. Raises ValueError if the quantiles are for another number of samples.
    """
    if own.n_own != quantiles.n:
        raise ValueError(f"quantiles for {quantiles.n} samples cannot place {own.n_own}")
    found: dict[Level, dict[str, list[float]]] = {}
    for level, statistics in quantiles.levels.items():
        group = own.levels[level].own
        values = {"forgetting_score": group.forgetting_score.mean}
        if group.negative_alignment is not None:
            values["negative_alignment_change"] = group.negative_alignment.change.mean
        found[level] = {
            look.name: _bounds(
                values[look.name],
                np.array(statistics[look.name]),
                np.array(quantiles.percentiles) / 100,
                two_sided=look.alternative == "two-sided",
            )
            for look in LOOKS
            if look.name in statistics and look.name in values
        }
    return found


def bounds_of_all(places: Mapping[Level, Mapping[str, list[float]]]) -> list[float]:
    """Bounds of one p-value for all looks together (Bonferroni)."""
    each = [bounds for statistics in places.values() for bounds in statistics.values()]
    return [min(1.0, len(each) * min(bounds[end] for bounds in each)) for end in (0, 1)]


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
    upper = [1 - edges[below + 1], 1 - edges[below]]
    if not two_sided:
        return [float(share) for share in upper]
    lower = [edges[below], edges[below + 1]]
    ends = [min(2 * min(pair), 1.0) for pair in zip(upper, lower, strict=True)]
    return [float(end) for end in ends]
