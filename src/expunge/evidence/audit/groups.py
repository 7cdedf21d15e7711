"""Means with their spread and intervals, of a group of samples alone. Compares nothing with alpha."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

from expunge.evidence.audit.alignment import off_diagonal
from expunge.evidence.audit.bootstrap import (
    MIN_PAIRED_SAMPLES,
    Resamples,
    interval,
)
from expunge.evidence.audit.outputs import Floats, Level, Outputs, Reference
from expunge.evidence.audit.report import (
    Contrast,
    Difference,
    Group,
    NegativeAlignment,
    Statistic,
)

Array = NDArray[np.float64]
MIN_SAMPLES = 2
RESAMPLING_SEED = 0
"""Intervals are the same in every audit of the same outputs, and of a reference computed once."""


@dataclass(frozen=True)
class Measured:
    """A group's statistics with the standard errors of their means (None: too few samples)."""

    group: Group
    score_error: float | None
    change_error: float | None


def measure(outputs: Outputs, resamples: Resamples, confidence: float) -> Measured:
    """Forgetting scores and negative alignment of one level's outputs."""
    n, paired = len(outputs), len(outputs.chosen)
    sides = (outputs.before, outputs.after)
    if n < MIN_SAMPLES:
        return Measured(Group(_statistic(outputs.scores, None, n, confidence), None), None, None)
    aligned = [resamples.self_alignment(side) for side in sides]
    score_error = resamples.standard_error(aligned[0] - aligned[1], outputs.before, n)
    score = _statistic(outputs.scores, score_error, n, confidence)
    before, after = (off_diagonal(matrix) for matrix in outputs.matrices)
    errors: list[float | None] = [None, None, None]
    if paired >= MIN_PAIRED_SAMPLES:
        draws = [resamples.negative_alignment(side, outputs.chosen) for side in sides]
        draws.append(draws[1] - draws[0])
        errors = [resamples.standard_error(each, outputs.before, paired) for each in draws]
    negative = NegativeAlignment(
        *(
            _statistic(values.astype(np.float64), error, paired, confidence)
            for values, error in zip((before, after, after - before), errors, strict=True)
        )
    )
    return Measured(Group(score, negative), score_error, errors[2])


def contrast(own: Measured, control: Measured, confidence: float) -> Contrast | None:
    """Own minus control; None where one of them is too small to vary."""
    scores = _difference(
        (own.group.forgetting_score, own.score_error),
        (control.group.forgetting_score, control.score_error),
        confidence,
    )
    if scores is None:
        return None
    negative = (own.group.negative_alignment, control.group.negative_alignment)
    change = None
    if negative[0] is not None and negative[1] is not None:
        change = _difference(
            (negative[0].change, own.change_error),
            (negative[1].change, control.change_error),
            confidence,
        )
    return Contrast(scores, change)


def shown(matrices: tuple[Floats, Floats], index: NDArray[np.int64]) -> dict[str, Floats]:
    """Before, after and gap = before - after, (m, m), of the samples at `index`."""
    block = np.ix_(index, index)
    before, after = (matrix[block] for matrix in matrices)
    return {"before": before, "after": after, "gap": before - after}


def measure_all(levels: Mapping[Level, Outputs], confidence: float) -> dict[Level, Measured]:
    """`measure` at every level, all of the same samples, with the same resamples."""
    first = next(iter(levels.values()))
    resamples = Resamples.draw(first, np.random.default_rng(RESAMPLING_SEED))
    return {level: measure(outputs, resamples, confidence) for level, outputs in levels.items()}


def measure_reference(reference: Reference, confidence: float) -> dict[Level, Measured]:
    """The same, computed once for a reference and kept with it."""
    key = ("groups", confidence)
    if key not in reference.kept:
        reference.kept[key] = measure_all(reference.levels, confidence)
    found: dict[Level, Measured] = reference.kept[key]
    return found


def _statistic(values: Array, error: float | None, n: int, confidence: float) -> Statistic:
    mean = float(values.mean())
    found = None if error is None else interval(mean, error, n, confidence)
    return Statistic(mean, float(values.std()), found, n)


def _difference(
    own: tuple[Statistic, float | None], control: tuple[Statistic, float | None], confidence: float
) -> Difference | None:
    """With Welch's degrees of freedom."""
    (mine, error), (theirs, other) = own, control
    if error is None or other is None:
        return None
    variance = error**2 + other**2
    difference = mine.mean - theirs.mean
    if variance == 0:
        return Difference(difference, [difference, difference])
    freedom = variance**2 / (error**4 / (mine.n - 1) + other**4 / (theirs.n - 1))
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * float(np.sqrt(variance))
    return Difference(difference, [difference - reach, difference + reach])
