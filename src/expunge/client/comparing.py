"""A comparison for people: how far it is, and its table. Computes nothing."""

import time
from collections.abc import Iterable, Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from expunge.client.comparisons import Cell, Comparison, ComparisonResult, Gap, Row, RunProgress
from expunge.client.durations import in_words
from expunge.client.progress import LOG_LINE_EVERY_SECONDS

NOT_THERE = "–"
ACRONYM_CHARS = 4
"""EMIA, RA, TA, UA, CMIA; longer ids are words."""
WIDE_CHARS = 110
"""Of a terminal where gaps fit beside their values; else they stand below."""


def follow(comparisons: Iterable[Comparison], console: Console) -> Comparison | None:
    """Show how far a comparison is until it ends; None if nothing ever came."""
    shown = _with_bar if console.is_terminal else _as_lines
    last = None
    for last in shown(comparisons, console):  # noqa: B007 - the last one is the answer
        pass
    return last


def standing(comparison: Comparison) -> list[str]:
    """Where an unfinished comparison is now."""
    progress = comparison.progress
    return [_state(comparison), *([] if progress is None else [_runs(progress)])]


def describe(progress: RunProgress) -> str:
    """What runs now, in words."""
    seed = "" if progress.seed is None else f", seed {progress.seed}"
    training = progress.training
    epoch = "" if training is None else f", epoch {training.epoch}/{training.epochs}"
    until = "" if progress.eta_seconds is None else f" · {in_words(progress.eta_seconds)} left"
    return f"{progress.label}{seed}{epoch}{until}"


def result_table(result: ComparisonResult, width: int = WIDE_CHARS) -> RenderableType:
    """The table as the papers print it, then failures, notes and the recommended setting.

    `width` is that of the terminal in characters.
    """
    rows = [row for row in result.rows if row.columns]
    names = result.columns
    with_gaps = any(row.avg_gap for row in rows)
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    apart = " " if width >= WIDE_CHARS else "\n"
    table.add_column("setting", overflow="fold")
    for name in (*names, "avg gap" if with_gaps else "proxy gap", "FS", "min"):
        table.add_column(_title(name) if name in names else name, justify="right")
    best = result.recommended.label if result.recommended else None
    for row in rows:
        gap = row.avg_gap if with_gaps else row.proxy_gap
        table.add_row(
            escape(row.label),
            *(_measure(row, name, apart) for name in names),
            _gap(gap, apart),
            _number(row.forgetting_score, "+.4f"),
            _number(row.minutes, ".2f"),
            style="bold" if row.kind == "candidate" and row.label == best else None,
        )
    table.caption = (
        "percent" + (", in brackets the gap to Retrain" if with_gaps else "") + "; ! is beyond "
        "Retrain on the side of forgetting; FS: forgetting score; min: minutes of unlearning"
    )
    lines = [
        f"[red]{escape(row.label)}: {escape(row.failure)}" for row in result.rows if row.failure
    ]
    lines += [f"[dim]{escape(note)}" for note in result.notes]
    if result.recommended is not None:
        lines.append(f"[bold]Recommended: {escape(result.recommended.label)}")
        lines.append(escape(result.recommended.why))
    else:
        lines.append("[bold]No setting can be recommended.")
    return Group(table, *lines)


def _title(column: str) -> str:
    return column.upper() if len(column) <= ACRONYM_CHARS else column.replace("_", " ")


def _measure(row: Row, name: str, apart: str) -> str:
    value = _number(row.columns.get(name), ".1f")
    beyond = "!" if name in row.over_unlearned else ""
    gap = row.gaps.get(name)
    return value + beyond + ("" if gap is None else f"{apart}({gap.value:.1f})")


def _gap(gap: Gap | None, apart: str) -> str:
    if gap is None:
        return NOT_THERE
    uncertainty = "" if gap.uncertainty is None else f"{apart}± {gap.uncertainty:.1f}"
    return f"{gap.value:.1f}{uncertainty}"


def _number(cell: Cell | None, form: str) -> str:
    return NOT_THERE if cell is None else format(cell.mean, form)


def _with_bar(comparisons: Iterable[Comparison], console: Console) -> Iterator[Comparison]:
    columns = (
        TextColumn("  comparison"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[where]}"),
        TextColumn("[dim]{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console) as bars:
        bar = bars.add_task("", total=None, where="", detail="waiting")
        for comparison in comparisons:
            progress = comparison.progress
            if progress is not None:
                bars.update(
                    bar,
                    total=progress.total,
                    completed=progress.done,
                    where=f"run {min(progress.done + 1, progress.total)}/{progress.total}",
                    detail=escape(describe(progress)),
                )
            elif comparison.finished_at is not None:
                bars.update(bar, total=1, completed=1, detail=comparison.state)
            yield comparison


def _as_lines(comparisons: Iterable[Comparison], console: Console) -> Iterator[Comparison]:
    next_line, state = time.monotonic() + LOG_LINE_EVERY_SECONDS, ""
    for comparison in comparisons:
        if comparison.state != state:
            state = comparison.state
            line = f"  {_state(comparison)}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif comparison.progress is not None and time.monotonic() >= next_line:
            next_line = time.monotonic() + LOG_LINE_EVERY_SECONDS
            line = f"  {_runs(comparison.progress)}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        yield comparison


def _state(comparison: Comparison) -> str:
    why = f": {comparison.reason}" if comparison.reason else ""
    return f"comparison {comparison.id}: {comparison.state}{why}"


def _runs(progress: RunProgress) -> str:
    return f"{progress.done} of {progress.total} runs; {describe(progress)}"
