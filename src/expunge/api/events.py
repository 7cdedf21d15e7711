"""Server-sent events of a request or a job: its states from the log, its progress, its end.

Reads in short transactions and sleeps without thread, connection or lock between them.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Header
from fastapi.sse import ServerSentEvent
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from expunge.api.schemas.values import Progress
from expunge.api.service import Service
from expunge.registry import lifecycles, parties
from expunge.registry.tables import LogRow

POLL_SECONDS = 0.5
STATES = sorted({*lifecycles.RequestState, *lifecycles.JobState})
"""Log events that are states; rows of other events are not for the watcher."""

_EVENT_ID = re.compile(r"(\d{1,18})(?:\.(\d{1,9}-\d{1,12}))?")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a watcher is: states seen, and a mark of the last progress.

    The log's own numbers would count what happens to others.
    """

    seen: int = 0
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.seen}.{self.mark}" if self.mark else str(self.seen)


class StateReached(BaseModel):
    """Data of a `state` event."""

    state: str
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Moment:
    """What a resource is like now."""

    state: str
    final: bool
    progress: Progress | None


async def _position(
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event that was received; resumes after it.")
    ] = None,
) -> Position:
    found = _EVENT_ID.fullmatch(last_event_id or "")
    return Position(int(found.group(1)), found.group(2) or "") if found else Position()


LastEventId = Annotated[Position, Depends(_position)]


async def follow(
    service: Service,
    subject_id: str,
    moment: Callable[[Session], Moment],
    position: Position,
    key_id: str,
) -> AsyncIterator[ServerSentEvent]:
    """The events after `position`, as they happen, until the end: that of the subject, or of the caller's key."""

    def look(after: int) -> tuple[Moment, list[LogRow]] | None:
        with service.sessions() as session:
            if not parties.is_live(session, key_id):
                return None
            # The state is read before the log: a final state's own log row is then always there.
            now = moment(session)
            rows = session.scalars(
                select(LogRow)
                .where(LogRow.subject_id == subject_id, LogRow.event.in_(STATES))
                .order_by(LogRow.seq)
                .offset(after)
            ).all()
            return now, list(rows)

    while True:
        found = await run_in_threadpool(look, position.seen)
        if found is None:
            return
        now, rows = found
        for row in rows:
            position = Position(position.seen + 1)
            yield _state(row, position)
        last_state = rows[-1].event if rows else now.state
        mark = _mark(now.progress)
        if now.progress is not None and mark != position.mark and last_state == now.state:
            position = Position(position.seen, mark)
            yield ServerSentEvent(
                event="progress", data=now.progress.model_dump(mode="json"), id=str(position)
            )
        if now.final:
            yield ServerSentEvent(event="end", data={"state": now.state}, id=str(position))
            return
        await asyncio.sleep(POLL_SECONDS)


def _mark(progress: Progress | None) -> str:
    """Epoch and whole seconds left: changes as work goes on, and tells no more than the event does."""
    return "" if progress is None else f"{progress.epoch}-{progress.eta_seconds:.0f}"


def _state(row: LogRow, position: Position) -> ServerSentEvent:
    return ServerSentEvent(
        event="state",
        data=StateReached(state=row.event, reason=row.detail.get("reason"), at=row.at).model_dump(
            mode="json"
        ),
        id=str(position),
    )
