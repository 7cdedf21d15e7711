"""Which setting to use, and why, in one honest sentence. Never recommends a row with a failure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from expunge.unlearning.candidates import Objective
from expunge.unlearning.comparison.records import Gap, Recommendation, Row

Uncertainty = Callable[[Row, Row], float | None]
"""Half the 95 % interval of the difference of two rows' gaps; None where there is no idea of it."""

CRITERIA: dict[Objective, str] = {
    "retrain": "average gap to Retrain",
    "proxy": "proxy gap (Retrain was not run)",
}


SAME_COST = 1.25
"""Run times up to so many times the shortest count as equal: they vary that much by themselves."""


def gap_of(row: Row, criterion: Objective) -> Gap | None:
    """The gap that decides."""
    return row.avg_gap if criterion == "retrain" else row.proxy_gap


@dataclass(frozen=True)
class _Choice:
    """Rows with their gaps, smallest first."""

    value: float
    chosen: Row
    ranked: list[tuple[float, Row]]
    reaches: dict[str, float | None]
    """How sure each row's distance from the smallest is, by label."""

    @property
    def tied(self) -> list[tuple[float, Row]]:
        return [each for each in self.ranked if self.may_be_best(*each)]

    @property
    def near(self) -> list[tuple[float, Row]]:
        """Of the tied, those whose forgetting score may be the nearest to Retrain's."""
        gaps = [row.forgetting_score_gap for _, row in self.tied]
        known = [gap for gap in gaps if gap is not None]
        if len(known) < len(gaps):
            return self.tied
        least = min(gap.value for gap in known)
        return [
            each
            for each, gap in zip(self.tied, known, strict=True)
            if gap.value - least <= (gap.uncertainty or 0.0)
        ]

    @property
    def runner_up(self) -> tuple[float, Row] | None:
        """The best of the others, which for a cheaper choice is the one it was chosen over."""
        return next((each for each in self.ranked if each[1] is not self.chosen), None)

    def may_be_best(self, value: float, row: Row) -> bool:
        return value - self.ranked[0][0] <= (self.reaches[row.label] or 0.0)


def recommend(
    rows: Sequence[Row], criterion: Objective, uncertainty: Uncertainty
) -> Recommendation | None:
    """The candidate with the smallest gap, or the cheapest of those that may have it.

    A row may have the smallest gap if it differs from the smallest by no more than the uncertainty
    of their difference; without an idea of that, only if it is equal. With Retrain, those that
    clearly differ more from its forgetting score than another do not count: the columns alone
    cannot tell a run that did nothing from one that forgot, where they are unsure. Of those within
    SAME_COST of the cheapest it is the one with the smallest gap. None without a candidate that
    succeeded.
    """
    gaps = [
        (gap_of(row, criterion), row)
        for row in rows
        if row.kind == "candidate" and row.failure is None
    ]
    ranked = sorted(
        ((gap.value, row) for gap, row in gaps if gap is not None), key=lambda each: each[0]
    )
    if not ranked:
        return None
    best = ranked[0][1]
    reaches = {row.label: None if row is best else uncertainty(best, row) for _, row in ranked}
    choice = _Choice(*ranked[0], ranked, reaches)
    limit = SAME_COST * min(_minutes(row) for _, row in choice.near)
    value, chosen = next(each for each in choice.near if _minutes(each[1]) <= limit)
    choice = replace(choice, value=value, chosen=chosen)
    runner_up = choice.runner_up
    return Recommendation(
        label=chosen.label,
        method=chosen.method or "",
        params=chosen.params or {},
        criterion=criterion,
        value=value,
        runner_up=runner_up[1].label if runner_up else None,
        within_uncertainty=runner_up is not None and choice.may_be_best(*runner_up),
        why="; ".join([*_reasons(choice, criterion), *_idle(value, rows, criterion)]) + ".",
    )


def _reasons(choice: _Choice, criterion: Objective) -> list[str]:
    chosen, runner_up = choice.chosen, choice.runner_up
    name = CRITERIA[criterion]
    own = f"{choice.value:.2f} points{_seeds(chosen)}"
    if runner_up is None:
        return [f"{chosen.label} is the only setting that succeeded, with {name} {own}"]
    value, other = runner_up
    if value < choice.value:
        ties = f"{len(choice.tied)} settings with no telling which has the smallest {name}"
        if len(choice.near) < len(choice.tied):
            ties = (
                f"the {len(choice.near)} that come nearest to Retrain's forgetting score, of {ties}"
            )
        against = f"{_minutes(other):.2g} minutes and {value:.2f} of {other.label}"
        return [
            f"{chosen.label} is the cheapest of {ties}",
            f"it takes {_minutes(chosen):.2g} minutes and has {own}, against {against}",
            f"that difference lies within its uncertainty (±{choice.reaches[chosen.label]:.2f})",
        ]
    # Each is known against the first of the ranked, which of two equal ones need not be chosen.
    first = choice.ranked[0][1]
    reach = choice.reaches[(chosen if other is first else other).label]
    return [
        f"{chosen.label} has the smallest {name}, {own}",
        f"the runner-up is {other.label} with {value:.2f}, {_apart(value - choice.value, reach)}",
    ]


def _apart(difference: float, reach: float | None) -> str:
    if reach is None:
        return "with too few samples to say how sure the difference is"
    if difference <= reach:
        return f"a difference within its uncertainty (±{reach:.2f}), and it is not clearly cheaper"
    return f"a difference beyond its uncertainty (±{reach:.2f})"


def _idle(value: float, rows: Sequence[Row], criterion: Objective) -> list[str]:
    """A clause where leaving the checkpoint as it is would have done as well."""
    gaps = [gap_of(row, criterion) for row in rows if row.kind == "before"]
    return [
        f"leaving the checkpoint as it is has no larger one, {gap.value:.2f}"
        for gap in gaps
        if gap is not None and gap.value <= value
    ]


def _minutes(row: Row) -> float:
    return row.minutes.mean if row.minutes else float("inf")


def _seeds(row: Row) -> str:
    seeds = next((cell.seeds for cell in row.columns.values()), [])
    return f" (mean of {len(seeds)} seeds)" if len(seeds) > 1 else " (one seed)"
