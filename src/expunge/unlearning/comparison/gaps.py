"""Distances between rows: to Retrain by column and on average, and to what unseen samples look like.

Trains and evaluates nothing.
"""

from collections.abc import Mapping, Sequence
from math import prod

from expunge.unlearning.comparison.estimates import Estimate, Term, combine, scaled
from expunge.unlearning.comparison.records import Gap
from expunge.unlearning.comparison.runs import Setting
from expunge.unlearning.metrics.measure import PERCENT

FORGETTING_SIDE: Mapping[str, int] = {"emia": 1, "cmia": 1, "ua": -1, "cosine_unlearn": -1}
"""Columns that can be overdone, and whether more (1) or less (-1) of them is forgetting."""
TOW_COLUMNS = ("ua", "ra", "ta")

OWN_PAIRS = (
    ("emia", "emia_specificity"),
    ("cmia", "cmia_specificity"),
    ("ua", "ta"),
    ("cosine_unlearn", "cosine_test"),
)
"""Columns of U, and what they are where U's samples look like samples never trained on."""
KEPT_COLUMNS = ("ra", "ta", "cosine_retain", "cosine_test")
"""Columns that should stay as they were before."""


def difference(setting: Setting, retrain: Setting, column: str) -> Estimate:
    """Mean over seeds minus Retrain's over the same seeds."""
    return combine(_difference(setting, retrain.under_the_seeds_of(setting), column))


def average_gap_terms(setting: Setting, retrain: Setting) -> list[Term]:
    """Terms whose sum is the mean over columns of |mean - Retrain's mean|; none without runs."""
    reference = retrain.under_the_seeds_of(setting)
    return _mean_distance([_difference(setting, reference, name) for name in setting.columns])


def proxy_gap_terms(setting: Setting, before: Setting) -> list[Term]:
    """Terms whose sum is the proxy gap, which needs no Retrain; none without runs.

    Forgotten samples should look like samples never trained on, and the rest should stay as it was:
    the mean of |EMIA - its specificity|, |CMIA - its specificity|, |UA - TA|, |RA - RA before| and
    |TA - TA before|, as far as there are labels, in percentage points; for CLIP of |cosine on U -
    on test|, |cosine on R - before| and |cosine on test - before|. A specificity is the percent
    of test samples that the same attack judges non-member; it was fitted on them, so is slightly
    flattered. Retrain itself does not reach 0: it loses accuracy on R's neighbours in U, and is
    another encoder than the one before.
    """
    if not setting.runs:
        return []
    own, past = setting.outcomes, before.under_the_seeds_of(setting).outcomes
    pairs = [
        [Term(1, column, own), Term(-1, target, own)]
        for column, target in OWN_PAIRS
        if column in own[0]
    ]
    pairs += [
        [Term(1, column, own), Term(-1, column, past)]
        for column in KEPT_COLUMNS
        if column in own[0]
    ]
    return _mean_distance(pairs)


def as_gap(estimate: Estimate) -> Gap:
    """The distance of a signed difference, as sure as the difference is."""
    return Gap(abs(estimate.value), estimate.uncertainty)


def tug_of_war(differences: Mapping[str, Estimate]) -> float | None:
    """Product of 1 - |difference in accuracy| over U, R and test; None without labels."""
    if not all(column in differences for column in TOW_COLUMNS):
        return None
    return prod(1 - abs(differences[column].value) / PERCENT for column in TOW_COLUMNS)


def overdone(differences: Mapping[str, Estimate]) -> list[str]:
    """Columns beyond Retrain on the side of forgetting by more than the uncertainty."""
    return [
        column
        for column, side in FORGETTING_SIDE.items()
        if (found := differences.get(column)) is not None
        and found.uncertainty is not None
        and side * found.value > found.uncertainty
    ]


def uncertainty_between(one: Sequence[Term], other: Sequence[Term]) -> float | None:
    """Half the 95 % interval of the difference of two sums over the same seeds."""
    return combine([*one, *scaled(other, -1)]).uncertainty


def _difference(setting: Setting, reference: Setting, column: str) -> list[Term]:
    return [Term(1, column, setting.outcomes), Term(-1, column, reference.outcomes)]


def _mean_distance(pairs: Sequence[Sequence[Term]]) -> list[Term]:
    """Each pair's terms with the sign that makes their sum positive, and an equal share each."""
    terms = []
    for pair in pairs:
        sign = 1 if combine(pair).value >= 0 else -1
        terms += scaled(pair, sign / len(pairs))
    return terms
