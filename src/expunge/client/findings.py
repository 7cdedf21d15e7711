"""An audit's numbers as a table for people: own and control side by side. Computes nothing."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from expunge.client.reports import (
    AuditReport,
    Difference,
    Estimate,
    ForgettingScore,
    Interval,
    LevelReport,
)

NOT_THERE = "–"


def findings_table(report: AuditReport, title: str | None = None) -> Table:
    """Per level: forgetting score and negative alignment, own against control."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("")
    for column in ("own", "control", "own − control"):
        table.add_column(column)
    for name, level in report.levels.items():
        table.add_row(f"[bold]{name} outputs")
        for row in _rows(level):
            table.add_row(*row)
        table.add_section()
    table.caption = (
        "alignment: between different images (negative alignment); "
        f"means with {report.confidence:.0%} intervals over {report.n_own} own"
        f" and {report.n_control or 0} control images, {report.views} views each"
    )
    return table


def with_interval(mean: float | None, interval: Interval | None) -> str:
    """`+0.0120 [+0.0100,+0.0140]`; a dash where there is no number."""
    if mean is None:
        return NOT_THERE
    if interval is None:
        return f"{mean:+.4f}"
    # No space inside: in a narrow terminal the line breaks before the interval.
    return f"{mean:+.4f} [{interval[0]:+.4f},{interval[1]:+.4f}]"


def _rows(level: LevelReport) -> list[tuple[str, str, str, str]]:
    control, contrast = level.control, level.contrast
    own, other = level.negative_alignment, control.negative_alignment if control else None
    return [
        (
            "forgetting score",
            _score(level.forgetting_score),
            _score(control.forgetting_score if control else None),
            _difference(contrast.forgetting_score if contrast else None),
        ),
        (
            "alignment before",
            _estimate(own.before if own else None),
            _estimate(other.before if other else None),
            "",
        ),
        (
            "alignment after",
            _estimate(own.after if own else None),
            _estimate(other.after if other else None),
            "",
        ),
        (
            "change",
            _estimate(own.change if own else None),
            _estimate(other.change if other else None),
            _difference(contrast.negative_alignment_change if contrast else None),
        ),
    ]


def _score(score: ForgettingScore | None) -> str:
    return NOT_THERE if score is None else with_interval(score.mean, score.interval)


def _estimate(estimate: Estimate | None) -> str:
    return NOT_THERE if estimate is None else with_interval(estimate.mean, estimate.interval)


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return NOT_THERE
    return with_interval(difference.difference, difference.interval)
