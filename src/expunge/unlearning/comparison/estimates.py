"""How sure a difference between encoders is that were measured on the same samples.

Normal approximation on paired samples; trains and evaluates nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from expunge.unlearning.evaluation import Counted, Outcome
from expunge.unlearning.metrics.measure import CONFIDENCE, normal_quantile

Array = NDArray[np.float64]
SeedOutcomes = Sequence[Mapping[str, Outcome]]
"""A row's outcomes by column, one mapping a seed."""


@dataclass(frozen=True)
class Term:
    """`weight` times one column of one row."""

    weight: float
    column: str
    row: SeedOutcomes


@dataclass(frozen=True)
class Estimate:
    """A number and half its 95 % interval; None where a single sample gives no idea of it."""

    value: float
    uncertainty: float | None


def combine(terms: Sequence[Term]) -> Estimate:
    """The sum of the terms, each a mean over seeds of means over samples.

    All rows have the same seeds, and sets of one name the same samples. The variance is that over
    samples, of what each sample adds to the sum (averaged over seeds, so what two rows have in
    common cancels), plus that of the sum's mean over seeds. For counts of right and wrong it is not
    less than one sample's worth: that none of 20 differs is no proof that none ever does.
    """
    by_seed = sum(_per_seed(term) for term in terms)
    groups: dict[Counted, list[Term]] = defaultdict(list)
    for term in terms:
        groups[term.row[0][term.column].counted].append(term)
    variances = [_sampling_variance(group) for group in groups.values()]
    values = np.atleast_1d(by_seed)
    value = float(values.mean())
    if any(np.isnan(variance) for variance in variances):
        return Estimate(value, None)
    total = sum(variances)
    if len(values) > 1:
        total += float(values.var(ddof=1)) / len(values)
    return Estimate(value, normal_quantile(CONFIDENCE) * sqrt(total))


def scaled(terms: Sequence[Term], weight: float) -> list[Term]:
    """The same terms, all `weight` times as heavy."""
    return [Term(weight * term.weight, term.column, term.row) for term in terms]


def _per_seed(term: Term) -> Array:
    outcomes = [seed[term.column] for seed in term.row]
    return term.weight * np.array([each.unit * each.values.mean() for each in outcomes])


def _sampling_variance(terms: Sequence[Term]) -> float:
    influence = sum(term.weight * _mean_over_seeds(term) for term in terms)
    values = np.atleast_1d(influence)
    n = len(values)
    counts = [
        abs(term.weight) * outcome.unit
        for term in terms
        for outcome in (term.row[0][term.column],)
        if outcome.values.dtype == np.bool_
    ]
    least = (max(counts) / n) ** 2 if counts else 0.0
    if n == 1:
        return least if counts else float("nan")
    return max(float(values.var(ddof=1)) / n, least)


def _mean_over_seeds(term: Term) -> Array:
    outcomes = [seed[term.column] for seed in term.row]
    mean: Array = np.mean([each.unit * each.values for each in outcomes], axis=0)
    return mean
