"""Shows a watched job or request: live bars in a terminal, few lines elsewhere (logs of a CI)."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from expunge.client.durations import in_words
from expunge.client.resources import End, Event, Progress, StateChange

LOG_LINE_EVERY_SECONDS = 15.0


@dataclass(frozen=True)
class Followed:
    """How the watched work ended; `progress` is the last that was reported."""

    state: str
    reason: str | None
    progress: Progress | None


def follow(events: Iterable[Event], console: Console, title: str) -> Followed:
    """Show the events until the last one and say how it ended."""
    shown = _with_bars if console.is_terminal else _as_lines
    state, reason, progress = "unknown", None, None
    for event in shown(events, console, title):
        match event:
            case StateChange():
                state, reason = event.state, event.reason
            case Progress():
                progress = event
            case End():
                state = event.state
    return Followed(state, reason, progress)


def describe(progress: Progress) -> str:
    """One line: total loss, speed if it is told, what is left."""
    loss = progress.losses.get("loss")
    speed = progress.images_per_second
    parts = [
        "" if loss is None else f"loss {loss:.3f}",
        "" if speed is None else f"{speed:,.0f} images/s",
        f"{in_words(progress.eta_seconds)} left",
    ]
    return " · ".join(filter(None, parts))


def _with_bars(events: Iterable[Event], console: Console, title: str) -> Iterator[Event]:
    columns = (
        TextColumn("  {task.fields[title]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[where]}"),
        TextColumn("[dim]{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console) as bars:
        bar = bars.add_task("", total=None, title=title, where="", detail="waiting")
        for event in events:
            match event:
                case Progress():
                    bars.update(
                        bar,
                        total=event.epochs if event.steps is None else event.steps,
                        completed=event.epoch if event.step is None else event.step,
                        where=f"{event.phase} epoch {event.epoch}/{event.epochs}",
                        detail=describe(event),
                    )
                case StateChange():
                    bars.update(bar, detail=event.state)
                case End():
                    bars.update(bar, total=1, completed=1, detail=event.state)
            yield event


def _as_lines(events: Iterable[Event], console: Console, title: str) -> Iterator[Event]:
    next_line = time.monotonic() + LOG_LINE_EVERY_SECONDS
    for event in events:
        match event:
            case StateChange():
                why = f": {event.reason}" if event.reason else ""
                console.print(f"  {title}: {event.state}{why}", highlight=False, soft_wrap=True)
            case Progress() if time.monotonic() >= next_line:
                next_line = time.monotonic() + LOG_LINE_EVERY_SECONDS
                where = f"{event.phase} epoch {event.epoch}/{event.epochs}"
                console.print(
                    f"  {title}: {where} {describe(event)}", highlight=False, soft_wrap=True
                )
        yield event
