"""An audit's numbers as a table for people: own images beside others. Computes nothing."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from expunge.client.reports import (
    AuditReport,
    Estimate,
    ForgettingScore,
    GroupReport,
    Interval,
    LevelReport,
    Test,
)
from expunge.evidence.wording import TRACE_ALPHA, percentage, probability

NOT_THERE = "–"
LEVEL_NAMES = {
    "encoder": "encoder outputs",
    "projector": "projector outputs",
    "image_text": "images against captions",
}


def findings_table(report: AuditReport, title: str | None = None) -> Table:
    """Per level: forgetting score and negative alignment of own, retained and control images."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("")
    for column in ("yours", "kept by the model", "never seen by it"):
        table.add_column(column)
    for name, level in report.levels.items():
        table.add_row(f"[bold]{LEVEL_NAMES.get(name, name)}")
        for row in _rows(level):
            table.add_row(*row)
        table.add_section()
    table.caption = (
        "alignment: between different images (negative alignment); "
        f"means with {report.confidence:.0%} intervals over {report.n_own} own, "
        f"{report.n_retained} kept and {report.n_control} never seen images, "
        f"{report.views} views each"
    )
    return table


def evidence(report: AuditReport) -> list[str]:
    """Test, power and membership in a sentence each, as far as there are any."""
    sentences = []
    if (test := report.test) is not None:
        sentences.append(
            f"p = {probability(test.p)}: the share of {test.draws:,} random draws of {test.n} from "
            f"your images and at least {test.n_alike} of the same kind that the model kept which look at "
            f"least as unusual; {test.alpha:g} or less counts as found.{_without_projector(test)}"
        )
    if (power := report.power) is not None:
        sentences.append(
            f"A retrain without yours would be found with {percentage(power.power)} probability."
        )
    if (membership := report.membership) is not None:
        seen = "yes" if membership.p <= TRACE_ALPHA else "not clearly"
        sentences.append(
            "Do yours still look more familiar to the model than images that it never saw? "
            f"p = {probability(membership.p)}: {seen}."
        )
    return sentences


def _without_projector(test: Test) -> str:
    if test.p_used is None or all(look.level != "projector" for look in test.looks):
        return ""
    return (
        " It also has to show without the projector, which only serves training: there p = "
        f"{probability(test.p_used)}, and {test.alpha_used:g} or less counts."
    )


def with_interval(mean: float | None, interval: Interval | None) -> str:
    """`+0.0120 [+0.0100,+0.0140]`; a dash where there is no number."""
    if mean is None:
        return NOT_THERE
    if interval is None:
        return f"{mean:+.4f}"
    # No space inside: in a narrow terminal the line breaks before the interval.
    return f"{mean:+.4f} [{interval[0]:+.4f},{interval[1]:+.4f}]"


def _rows(level: LevelReport) -> list[tuple[str, ...]]:
    groups: list[LevelReport | GroupReport | None] = [level, level.retained, level.control]
    negative = [group.negative_alignment if group else None for group in groups]
    return [
        (
            "forgetting score",
            *(_score(group.forgetting_score if group else None) for group in groups),
        ),
        ("alignment before", *(_estimate(each.before if each else None) for each in negative)),
        ("alignment after", *(_estimate(each.after if each else None) for each in negative)),
        ("change", *(_estimate(each.change if each else None) for each in negative)),
    ]


def _score(score: ForgettingScore | None) -> str:
    return NOT_THERE if score is None else with_interval(score.mean, score.interval)


def _estimate(estimate: Estimate | None) -> str:
    return NOT_THERE if estimate is None else with_interval(estimate.mean, estimate.interval)
