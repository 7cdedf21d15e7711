"""Tells calls that wait for a job that it has ended, as soon as PostgreSQL says so. Never the only way to learn it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from expunge.registry.jobs import ENDED_CHANNEL
from expunge.registry.notifications import Listener


class Endings:
    """For all calls of a process, from any thread's event loop."""

    def __init__(self, engine: Engine) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._listener = Listener(engine, ENDED_CHANNEL, self._tell)

    def start(self) -> None:
        """Begin to listen."""
        self._listener.start()

    def stop(self) -> None:
        """Stop listening."""
        self._listener.stop()

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set when the job has ended."""
        place = (asyncio.get_running_loop(), asyncio.Event())
        with self._guard:
            self._waiting.setdefault(job_id, set()).add(place)
        try:
            yield place[1]
        finally:
            with self._guard:
                self._waiting[job_id].discard(place)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    def _tell(self, job_id: str) -> None:
        with self._guard:
            for loop, event in self._waiting.get(job_id, ()):
                loop.call_soon_threadsafe(event.set)
