"""Membership inference: EMIA on the alignment of views, CMIA on a probe's confidence.

Works on one score per sample; never runs an encoder.
"""

from dataclasses import dataclass, field
from math import floor
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from expunge.unlearning.metrics.measure import CONFIDENCE, Measure, normal_quantile, percentage

Array = NDArray[np.float64]
Judgement = NDArray[np.bool_]
Search = Literal["sorted", "grid500"]

GRID_BINS = 500
"""Of the released code: 501 thresholds on [0, 1]."""
LOW_FALSE_POSITIVES = 0.01
MIN_VARIANCE_SAMPLES = 2
SVC_PENALTY = 3.0
"""C of the released code and of Unlearn-Sparse, which it follows."""
CONFIDENCE_STEPS = 1024
"""Per unit of confidence: at most so many different ones per group are fitted."""
_ROUNDING = 1e-9
"""So that 1 % of 100 samples is one sample, although 0.01 is not exactly a hundredth."""


@dataclass(frozen=True)
class Attack:
    """What an attack says of U, and how well it tells members from non-members at all."""

    efficacy: Measure
    """Percent of U judged non-member. The target is Retrain's value, not 100."""
    accuracy: Measure
    """Percent right over the members and non-members it was fitted on, so slightly flattering."""
    specificity: Measure
    """Percent of the non-members it was fitted on judged non-member: what the efficacy would be if
    U looked like samples never trained on."""
    auc: Measure
    """Share of (member, non-member) pairs in which the member scores higher; ties count half."""
    tpr_at_1_percent_fpr: Measure
    """Percent of members found where at most 1 % of the non-members are taken for members."""
    threshold: float | None
    """Scores from here on are judged member; None for CMIA, whose rule need not be a threshold."""
    spared: Judgement = field(repr=False, compare=False)
    """(U,) whether each unlearn sample is judged non-member."""
    rejected: Judgement = field(repr=False, compare=False)
    """(O,) whether each non-member is judged non-member."""


@dataclass(frozen=True)
class Threshold:
    """Judge member at scores >= value; the balanced accuracy that has, in [0, 1]."""

    value: float
    balanced_accuracy: float


def search_threshold(members: Array, others: Array, search: Search = "sorted") -> Threshold:
    """The threshold with the best balanced accuracy; the lowest one on ties.

    `sorted` tries every score of the (M,) members and (O,) others, so nothing is missed on any
    scale; `grid500` tries the released code's 501 values on [0, 1]. Counts are whole numbers, so
    ties are exact. Raises ValueError without members or others, or for scores that are not finite.
    """
    _check(members, others)
    if search == "sorted":
        candidates = np.unique(np.concatenate([members, others]))
    else:
        candidates = np.histogram_bin_edges(np.empty(0), bins=GRID_BINS, range=(0, 1))
    found = len(members) - np.searchsorted(np.sort(members), candidates)
    rejected = np.searchsorted(np.sort(others), candidates)
    right = found * len(others) + rejected * len(members)
    best = int(right.argmax())
    return Threshold(
        value=float(candidates[best]),
        balanced_accuracy=float(right[best] / (2 * len(members) * len(others))),
    )


def area_under_curve(members: Array, others: Array, *, seed: int) -> Measure:
    """P(member's score > other's) + P(equal) / 2, the area under the ROC curve, in [0, 1].

    The interval is DeLong's (1988), from the variance over samples of the share of the other group
    that each sample beats; none with fewer than two in a group. It has no width where both groups
    are wholly apart.
    """
    _check(members, others)
    beaten, unbeaten = _share_below(members, others), 1 - _share_below(others, members)
    area, n = float(beaten.mean()), len(members) + len(others)
    if min(len(members), len(others)) < MIN_VARIANCE_SAMPLES:
        return Measure(area, n, seed)
    variances = (shares.var(ddof=1) / len(shares) for shares in (beaten, unbeaten))
    half = normal_quantile(CONFIDENCE) * float(np.sqrt(sum(variances)))
    return Measure(area, n, seed, [max(0.0, area - half), min(1.0, area + half)])


def _share_below(scores: Array, reference: Array) -> Array:
    """(N,) share of the reference below each score; equal ones count half."""
    ranked = np.sort(reference)
    sides = (np.searchsorted(ranked, scores, side="left"), np.searchsorted(ranked, scores, "right"))
    shares: Array = (sides[0] + sides[1]) / (2 * len(reference))
    return shares


def members_found(members: Array, others: Array, rate: float = LOW_FALSE_POSITIVES) -> int:
    """How many members a threshold finds that takes at most a share `rate` of others for members.

    The best of all thresholds with floor(rate * O) false positives or fewer.
    """
    _check(members, others)
    allowed = floor(rate * len(others) + _ROUNDING)
    if allowed >= len(others):
        return len(members)
    first_forbidden = np.sort(others)[len(others) - 1 - allowed]
    return int((members > first_forbidden).sum())


def encoder_attack(
    members: Array, others: Array, unlearned: Array, *, seed: int, search: Search = "sorted"
) -> Attack:
    """EMIA: judge by each sample's mean cosine between its views (`self_alignment`).

    members: (M,) of retained samples; others: (O,) of test samples, as many; unlearned: (U,).
    """
    _check(unlearned)
    threshold = search_threshold(members, others, search).value
    return _attack(
        members,
        others,
        seed=seed,
        found=int((members >= threshold).sum()),
        spared=unlearned < threshold,
        rejected=others < threshold,
        threshold=threshold,
    )


def confidence_attack(
    members: Array, others: Array, unlearned: Array, *, seed: int, exact: bool = False
) -> Attack:
    """CMIA: a support vector machine on the probability that a probe gives the true class.

    members: (M,) of retained samples; others: (O,) of test samples, as many; unlearned: (U,), all
    in [0, 1]. SVC(C=3, kernel="rbf", gamma="auto"). With `exact` it is fitted on every sample, as
    the released code does, in a time that grows with the square of their number. Otherwise on
    confidences rounded to 1/1024, equal ones of a group as one of their weight, which over six
    pairs of distributions moved the efficacy by 0.1 points at most. Judged are exact confidences.
    """
    _check(members, others, unlearned)
    machine = _fit(members, others) if exact else _fit_rounded(members, others)

    def judged_member(scores: Array) -> Judgement:
        return np.asarray(machine.predict(scores[:, None]), dtype=np.bool_)

    return _attack(
        members,
        others,
        seed=seed,
        found=int(judged_member(members).sum()),
        spared=~judged_member(unlearned),
        rejected=~judged_member(others),
        threshold=None,
    )


def _fit(members: Array, others: Array, weights: Array | None = None) -> SVC:
    scores = np.concatenate([members, others])[:, None]
    is_member = np.repeat([1, 0], [len(members), len(others)])
    machine = SVC(C=SVC_PENALTY, kernel="rbf", gamma="auto")
    return machine.fit(scores, is_member, sample_weight=weights)


def _fit_rounded(members: Array, others: Array) -> SVC:
    (members, found), (others, left) = (
        np.unique((scores * CONFIDENCE_STEPS).round() / CONFIDENCE_STEPS, return_counts=True)
        for scores in (members, others)
    )
    return _fit(members, others, np.concatenate([found, left]).astype(np.float64))


def _attack(
    members: Array,
    others: Array,
    *,
    seed: int,
    found: int,
    spared: Judgement,
    rejected: Judgement,
    threshold: float | None,
) -> Attack:
    right = found + int(rejected.sum())
    return Attack(
        efficacy=percentage(int(spared.sum()), len(spared), seed=seed),
        accuracy=percentage(right, len(members) + len(others), seed=seed),
        specificity=percentage(int(rejected.sum()), len(others), seed=seed),
        auc=area_under_curve(members, others, seed=seed),
        tpr_at_1_percent_fpr=percentage(members_found(members, others), len(members), seed=seed),
        threshold=threshold,
        spared=spared,
        rejected=rejected,
    )


def _check(*groups: Array) -> None:
    if min(len(group) for group in groups) == 0:
        raise ValueError("membership inference needs members, non-members and unlearn samples")
    if not all(np.isfinite(group).all() for group in groups):
        raise ValueError("membership scores are not finite: the encoder's outputs have diverged")
