"""A comparison as one picture (PNG). Draws; never computes a statistic."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expunge.unlearning.candidates import Objective
from expunge.unlearning.comparison.recommendation import gap_of
from expunge.unlearning.comparison.records import BEFORE, Comparison, Row

DOTS_PER_INCH = 130
CHOSEN, OTHER, IDLE = "#d55e00", "#0072b2", "#888888"
"""Vermilion, blue and grey of Okabe and Ito's palette, told apart by every kind of colour vision."""
LABEL_WIDTH = 48
"""Characters a line."""
SMALLEST_DOT, LARGEST_DOT = 110.0, 450.0
"""Areas in square points; a number fits into the smallest."""
INCHES_A_LINE = 0.16
INCHES_A_BAR = 0.2
AXIS_NAMES: dict[Objective, str] = {
    "retrain": "Average gap to Retrain (points, less is better)",
    "proxy": "Proxy gap, without Retrain (points, less is better)",
}

AXES = (("emia", "ta"), ("cosine_unlearn", "cosine_retain"))
"""Columns that say how much was forgotten, and what it cost; the first pair that a row has."""
NAMES = {
    "emia": "EMIA (% of unlearn samples judged non-member)",
    "ta": "Test accuracy (%)",
    "cosine_unlearn": "Image-caption cosine on U (x 100)",
    "cosine_retain": "Image-caption cosine on R (x 100)",
}
FORGETTING_GAPS = {
    "emia": "Forgetting: EMIA's gap to Retrain (points; 0, 0 is Retrain)",
    "cosine_unlearn": "Forgetting: gap of the cosine on U to Retrain (x 100; 0, 0 is Retrain)",
}
UTILITY_GAPS = {
    "ta": "Utility: test accuracy's gap to Retrain (points)",
    "cosine_retain": "Utility: gap of the cosine on R to Retrain (x 100)",
}


def write_chart(comparison: Comparison, path: Path) -> None:
    """Left, the gap that decides of every setting; right, what forgetting costs in accuracy.

    Bars carry the uncertainty of the gap. Dots are numbered as the bars, and as large as their
    setting took long. Failed settings are named, without a bar.
    """
    criterion: Objective = "proxy" if comparison.settings.retrain is None else "retrain"
    rows = [row for row in comparison.rows if row.kind != "retrain"]
    chosen = comparison.recommended.label if comparison.recommended else None
    colours = [
        IDLE if row.kind == "before" else CHOSEN if row.label == chosen else OTHER for row in rows
    ]
    lines = max(_name(row, 0).count("\n") + 1 for row in rows)
    figure = Figure(
        figsize=(13, max(4.2, 1.8 + (INCHES_A_BAR + INCHES_A_LINE * lines) * len(rows))),
        dpi=DOTS_PER_INCH,
        layout="constrained",
    )
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _bars(left, rows, colours, criterion)
    _scatter(right, rows, colours, criterion)
    sizes, seeds = comparison.settings.sizes, comparison.settings.seeds
    figure.suptitle(
        f"{sizes['forget']} of {sizes['retain'] + sizes['forget']} images to forget, "
        f"{comparison.settings.framework}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    )
    figure.savefig(path, format="png")


def _bars(axes: Axes, rows: list[Row], colours: list[str], criterion: Objective) -> None:
    reach = max((gap.value for row in rows if (gap := gap_of(row, criterion))), default=1.0)
    for at, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        gap = gap_of(row, criterion)
        if gap is None or row.failure is not None:
            axes.text(0.01 * reach, at, "failed", va="center", color=IDLE)
            continue
        axes.barh(at, gap.value, color=colour, height=0.66)
        if gap.uncertainty is not None:
            below = min(gap.uncertainty, gap.value)
            axes.errorbar(
                gap.value, at, xerr=[[below], [gap.uncertainty]], color="black", capsize=3, lw=1
            )
    names = [_name(row, at) for at, row in enumerate(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(AXIS_NAMES[criterion])
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title("Vermilion: recommended. Lines: 95 % interval", fontsize=9)


def _scatter(axes: Axes, rows: list[Row], colours: list[str], criterion: Objective) -> None:
    """|EMIA gap| against |TA gap|, for CLIP of the cosines; see `_place` for what else there is."""
    longest = max((row.minutes.mean for row in rows if row.minutes), default=0.0) or 1.0
    for at, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        place = _place(row, criterion)
        if place is None or row.failure is not None:
            continue
        minutes = row.minutes.mean if row.minutes else 0.0
        area = SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * minutes / longest
        axes.scatter(*place, s=area, color=colour, alpha=0.75, edgecolor="black", linewidth=0.6)
        axes.annotate(str(at + 1), place, ha="center", va="center", fontsize=7, color="white")
    across, up = _axis_titles(rows[0], criterion)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(0.12)
    if across in FORGETTING_GAPS.values():
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(f"Area: run time, the largest dot {longest:.2g} min", fontsize=9)


def _pair(row: Row) -> tuple[str, str] | None:
    return next((pair for pair in AXES if all(column in row.columns for column in pair)), None)


def _place(row: Row, criterion: Objective) -> tuple[float, float] | None:
    pair = _pair(row)
    if pair is not None and criterion == "retrain":
        return row.gaps[pair[0]].value, row.gaps[pair[1]].value
    if pair is not None:
        return row.columns[pair[0]].mean, row.columns[pair[1]].mean
    if "emia" not in row.columns:
        return None
    score = row.forgetting_score.mean if row.forgetting_score else 0.0
    return row.columns["emia"].mean, score


def _axis_titles(row: Row, criterion: Objective) -> tuple[str, str]:
    pair = _pair(row)
    if pair is None:
        return NAMES["emia"], "Forgetting score"
    if criterion == "proxy":
        return NAMES[pair[0]], NAMES[pair[1]]
    return FORGETTING_GAPS[pair[0]], UTILITY_GAPS[pair[1]]


def _name(row: Row, at: int) -> str:
    label = "Before (nothing done)" if row.label == BEFORE else row.label
    return textwrap.fill(f"{label}  [{at + 1}]", LABEL_WIDTH)
