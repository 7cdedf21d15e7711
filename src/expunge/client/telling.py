"""Clocks, logs, lineage and estimates for people. Computes nothing but how long ago something was."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from expunge.client.durations import in_words
from expunge.client.resources import (
    Ancestry,
    Drift,
    Estimate,
    Job,
    LogEntry,
    RemovalRequest,
    Residue,
    Span,
)

NOT_THERE = "–"


def clock(request: RemovalRequest, now: datetime | None = None) -> str:
    """How long the owner has waited, and until when the law lets them wait."""
    now = now or datetime.now(UTC)
    exposed = request.exposure_seconds
    if exposed is None:
        return f"It ended without a result: {request.reason or request.state}."
    if request.effective_at is not None:
        return f"In force; the data was exposed for {in_words(exposed)} after the request."
    waited = f"exposed for {in_words(exposed)} so far"
    if request.overdue:
        late = in_words((now - request.deadline_at).total_seconds())
        return f"Overdue by {late}; {waited}."
    left = in_words((request.deadline_at - now).total_seconds())
    done = "Completed, but the old model still serves; " if request.state == "completed" else ""
    return f"{done}{waited}; due in {left} ({request.deadline_at:%Y-%m-%d}).".capitalize()


def due(request: RemovalRequest, now: datetime | None = None) -> str:
    """The clock in one word, for lists."""
    if request.overdue:
        return "overdue"
    if request.effective_at is not None or request.exposure_seconds is None:
        return ""
    left = (request.deadline_at - (now or datetime.now(UTC))).total_seconds()
    return f"in {in_words(left)}"


def log_table(entries: Iterable[LogEntry]) -> Table:
    """One line for everything that happened, in order."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("who", overflow="fold")
    table.add_column("what", no_wrap=True)
    table.add_column("why", overflow="fold")
    for entry in entries:
        table.add_row(
            str(entry.position),
            f"{entry.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
            escape(entry.worker or entry.actor),
            escape(_event(entry)),
            escape(_why(entry)),
        )
    return table


def _event(entry: LogEntry) -> str:
    if entry.priority is not None:
        return f"{entry.event} {entry.priority}"
    return entry.event if entry.attempt is None else f"{entry.event} (attempt {entry.attempt})"


def _why(entry: LogEntry) -> str:
    parts = [entry.reason, entry.words]
    if entry.reason is None and entry.kind is not None:
        parts.insert(0, entry.kind)
    if entry.memory is not None:
        parts.append(f"memory: {entry.memory}")
    return ": ".join(filter(None, parts))


def finished(job: Job) -> list[str]:
    """What a job that has succeeded gave: its checkpoint, how long it took, what it measured."""
    metrics = job.metrics or {}
    made = f", checkpoint {job.result_checkpoint_id}" if job.result_checkpoint_id else ""
    took = f" in {in_words(seconds)}" if (seconds := metrics.get("seconds")) is not None else ""
    return [f"{job.id}: {job.kind} {job.state}{took}{made}", *filter(None, [_measures(metrics)])]


def _measures(metrics: Mapping[str, Any]) -> str:
    parts = []
    if utility := metrics.get("utility"):
        before = "" if utility["before"] is None else f"{utility['before']:.3f} to "
        parts.append(
            f"contrastive accuracy {before}{utility['after']:.3f} on {utility['n']} retained images"
        )
    for level, groups in (metrics.get("evaluation") or {}).items():
        if (found := groups["unlearn"]) is not None:
            parts.append(f"forgetting score ({level}) {found['forgetting_score']['mean']:+.4f}")
    if (speed := metrics.get("images_per_second")) is not None:
        parts.append(f"{speed:,.0f} images/s on {metrics['device']}")
    return "; ".join(parts)


def residue_table(found: Iterable[Residue]) -> Table:
    """One thing a row: what it is and why it is there, where, and when it goes."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("what is left, and why", overflow="fold", ratio=3)
    table.add_column("where", overflow="fold", ratio=1)
    table.add_column("until", overflow="fold", ratio=2)
    for each in found:
        named = each.id or ("" if each.count == 1 else f"({each.count})")
        table.add_row(
            f"[bold]{escape(f'{each.what} {named}'.strip())}[/]: {escape(each.state)}\n"
            f"[dim]{escape(each.why)}",
            escape(each.where),
            escape(_ending(each)),
        )
    return table


def _ending(each: Residue) -> str:
    day = "" if each.until is None else f"{each.until:%Y-%m-%d}"
    return ", ".join(filter(None, (day, each.condition))) or NOT_THERE


def lineage_table(ancestries: Iterable[Ancestry]) -> RenderableType:
    """Checkpoints oldest first; below, why one cannot go back, and whether a retrain is advised."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for title in ("checkpoint", "made", "place"):
        table.add_column(title, no_wrap=True)
    for title in ("gone", "utility", "back"):
        table.add_column(title, justify="right", no_wrap=True)
    below: list[str] = []
    for each in ancestries:
        drift = each.drift
        table.add_row(
            each.id,
            f"{each.made_at:%Y-%m-%d}",
            _place(each),
            f"{drift.forgotten_share:.1%}",
            f"{0 - drift.utility_lost:+.3f}",
            "yes" if each.promotable else "" if each.is_head else "no",
            style="bold" if each.is_head else None,
        )
        if each.problem is not None:
            below.append(f"[dim]Checkpoint {each.id}: {escape(each.problem.detail)}.")
        if each.reason is not None and not each.is_head:
            below.append(f"[dim]{escape(each.reason)}")
        if each.is_head:
            below += advice(drift)
    table.caption = (
        "gone, utility: share of the samples forgotten and change of contrastive accuracy since "
        "the last full training; back: `expunge models promote` would go there"
    )
    return Group(table, *below)


def _place(each: Ancestry) -> str:
    if each.is_head:
        return "head"
    if each.destroyed_at is not None:
        return "destroyed"
    if each.promoted_at is not None:
        return "was head"
    return "withheld" if each.problem is not None and each.state == "ready" else each.state


def advice(drift: Drift) -> list[str]:
    """Whether to train anew, and why; no line if not."""
    if not drift.retrain_advised:
        return []
    return ["[bold]A retrain is advised:", *(f"  {escape(reason)}" for reason in drift.reasons)]


def estimate_table(estimates: Iterable[Estimate]) -> RenderableType:
    """A method a line, quickest first."""
    found = sorted(estimates, key=lambda each: each.seconds.expected if each.seconds else 0.0)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", overflow="fold")
    table.add_column("epochs", justify="right")
    for title in ("takes", "most likely", "waits", "costs"):
        table.add_column(title, justify="right")
    for each in found:
        table.add_row(
            escape(each.method),
            str(each.params.get("epochs", NOT_THERE)),
            NOT_THERE if each.seconds is None else in_words(each.seconds.expected),
            _span(each.seconds),
            NOT_THERE if each.waiting_seconds is None else in_words(each.waiting_seconds),
            f"{each.cost.amount:g} {each.cost.currency}" if each.cost else NOT_THERE,
        )
    return Group(table, *(f"[dim]{line}" for line in sorted({_basis(each) for each in found})))


def _span(span: Span | None) -> str:
    return NOT_THERE if span is None else f"{in_words(span.low)} to {in_words(span.high)}"


def _basis(estimate: Estimate) -> str:
    if estimate.basis == "none":
        return "No job that could be compared has run yet, so nobody knows how long one takes."
    jobs = "" if estimate.n_jobs is None else f" ({estimate.n_jobs} of them)"
    return f"From what {estimate.basis}{jobs} took."
