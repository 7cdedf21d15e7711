"""Whether this process can serve calls, found out by trying. Never waits long for a dependency that hangs.

All who ask within a second share one look, and a check that hangs has one thread, however many ask.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from expunge.api.metering import CHECKS
from expunge.api.rates import RateLimits
from expunge.api.space import Space
from expunge.registry import fleet
from expunge.registry.migration import fits
from expunge.registry.objects import ObjectStore
from expunge.registry.settings import Settings

FRESH_SECONDS = 1.0
"""How long a look counts."""
LONGEST_SECONDS = 5.0
"""After so long a check that has not come back has failed."""
CLOCK_SKEW_SECONDS = 5.0
"""Between this machine and the database; expiries and deadlines go by the database's clock."""

log = structlog.get_logger(__name__)


class Outcome(StrEnum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    """Something for an operator; calls are served nevertheless."""
    FAILED = "failed"
    """Nearly every call would fail."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to try; `act` raises what is wrong."""

    name: str
    act: Callable[[], None]
    worst: Outcome = Outcome.FAILED
    """What it means if it goes wrong."""


class Readiness:
    """The checks of one process and what they found last."""

    def __init__(
        self, checks: Sequence[Check], *, longest_seconds: float = LONGEST_SECONDS
    ) -> None:
        self._tries = [_Try(check, longest_seconds) for check in checks]
        self._look: asyncio.Task[dict[str, Outcome]] | None = None
        self._began = float("-inf")

    async def outcomes(self) -> dict[str, Outcome]:
        """What each check found, at most FRESH_SECONDS ago; a check that takes too long has failed."""
        stale = time.monotonic() - self._began >= FRESH_SECONDS
        if self._look is None or (stale and self._look.done()):
            self._began = time.monotonic()
            self._look = asyncio.create_task(self._look_now())
        # Whoever leaves does not take the look away from the others.
        return await asyncio.shield(self._look)

    async def _look_now(self) -> dict[str, Outcome]:
        found = await asyncio.gather(*(each.outcome() for each in self._tries))
        outcomes = dict(zip((each.check.name for each in self._tries), found, strict=True))
        for name, outcome in outcomes.items():
            CHECKS.labels(name).set(outcome == Outcome.OK)
        return outcomes


class _Try:
    """Runs one check, one at a time, in a thread of its own, and does not wait long for it."""

    def __init__(self, check: Check, longest_seconds: float) -> None:
        self.check = check
        self._longest_seconds = longest_seconds
        self._running = False
        self._was_wrong = False

    async def outcome(self) -> Outcome:
        if self._running:
            return self._wrong("it still hangs")
        self._running = True
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str | None] = loop.create_future()

        def settle(wrong: str | None) -> None:
            self._running = False
            if not done.done():
                done.set_result(wrong)

        def run() -> None:
            wrong = None
            try:
                self.check.act()
            # Whatever goes wrong with a dependency means one thing here.
            except Exception as error:
                wrong = repr(error)
            try:
                loop.call_soon_threadsafe(settle, wrong)
            except RuntimeError:
                # The process is ending; nobody asks any more.
                return

        threading.Thread(target=run, name=f"check {self.check.name}", daemon=True).start()
        try:
            wrong = await asyncio.wait_for(done, self._longest_seconds)
        except TimeoutError:
            wrong = f"no answer within {self._longest_seconds:g} s"
        if wrong is not None:
            return self._wrong(wrong)
        if self._was_wrong:
            log.info("ready-again", check=self.check.name)
        self._was_wrong = False
        return Outcome.OK

    def _wrong(self, why: str) -> Outcome:
        # Once, not with every look of an outage.
        if not self._was_wrong:
            log.warning("not-ready", check=self.check.name, error=why)
        self._was_wrong = True
        return self.check.worst


def checks_of(
    settings: Settings, engine: Engine, store: ObjectStore, rates: RateLimits
) -> list[Check]:
    """What the api needs, and what its operator wants to know."""
    return [
        Check("database", lambda: _ping(engine)),
        Check("migrations", lambda: _require_fit(engine)),
        Check("objects", store.check),
        Check("redis", rates.require_redis, Outcome.WARNING),
        Check("dispatcher", lambda: _require_dispatcher(engine), Outcome.WARNING),
        Check("clock", lambda: _compare_clocks(engine), Outcome.WARNING),
        Check(
            "work_dir",
            lambda: _require_room(settings.work_dir, settings.max_shard_bytes),
            Outcome.WARNING,
        ),
    ]


def _ping(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def _require_fit(engine: Engine) -> None:
    if not fits(engine):
        raise RuntimeError("the schema is not one that this program can run on")


def _require_dispatcher(engine: Engine) -> None:
    with Session(engine) as session:
        now = fleet.now(session)
        roles = {each.role for each in fleet.workers(session) if fleet.is_live(each, now)}
    if fleet.DISPATCHER not in roles:
        raise RuntimeError("no dispatcher was heard of lately: nobody wakes workers")


def _compare_clocks(engine: Engine) -> None:
    with engine.connect() as connection:
        before = time.time()
        theirs = connection.scalar(select(func.extract("epoch", func.clock_timestamp())))
        after = time.time()
    skew = float(theirs or 0) - (before + after) / 2
    if abs(skew) > CLOCK_SKEW_SECONDS + (after - before) / 2:
        raise RuntimeError(f"the database's clock is {skew:+.1f} s from this machine's")


def _require_room(folder: Path, bytes_: int) -> None:
    if not os.access(folder, os.W_OK):
        raise RuntimeError(f"{folder} cannot be written")
    Space(folder).require(bytes_)
