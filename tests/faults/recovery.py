"""How long the service takes from a fault, or its end, to the next progress of what was hit. Only looks on."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tests.faults.injuries import Injury
from tests.faults.rig import Rig
from tests.faults.schedule import Kind

LOOK_SECONDS = 0.1
JOBS = """
    SELECT id, attempt, state, progress ->> 'step' AS step, progress ->> 'phase' AS phase, snapshot_key
    FROM jobs WHERE state IN ('running', 'evaluating') OR id = ANY(:ids)
"""
CLAIMS = """
    SELECT max(seq) AS any_worker,
           max(seq) FILTER (WHERE detail ->> 'worker' LIKE 'interactive-%') AS interactive
    FROM log WHERE event = 'running'
"""
RESULTS = "SELECT max(seq) AS last FROM log WHERE event IN ('succeeded', 'sealed', 'evaluating')"


@dataclass(frozen=True)
class Look:
    """How the service stood at one moment."""

    at: float
    jobs: Mapping[str, Mapping[str, Any]]
    claims: Mapping[str, int | None]
    results: int | None

    @property
    def trained(self) -> set[tuple[Any, ...]]:
        """Where the running jobs are."""
        return {(j["id"], j["attempt"], j["step"], j["phase"]) for j in self.jobs.values()}

    @property
    def stored(self) -> tuple[Any, ...]:
        """What got into the object store."""
        return self.results, {job["snapshot_key"] for job in self.jobs.values()} - {None}


@dataclass
class Wound:
    """A fault whose end, or consequences, are still to come."""

    injury: Injury
    before: Look | None
    ready: float
    """When the fault itself is over."""


class Recoveries:
    """Measures recoveries from a thread while the block runs."""

    def __init__(self, rig: Rig) -> None:
        self.seconds: list[tuple[Kind, float]] = []
        """Of each fault that was recovered from, from its end on."""
        self._rig = rig
        self._done = threading.Event()
        self._guard = threading.Lock()
        self._open: list[Wound] = []
        self._last: Look | None = None
        self._thread = threading.Thread(target=self._run, name="recoveries", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def open(self) -> list[Injury]:
        """What was not recovered from yet."""
        with self._guard:
            return [wound.injury for wound in self._open]

    def measure(self, injury: Injury) -> None:
        """From now on, until it is recovered from.

        A worker that is paused is replaced by another one, which need not wait for the pause's end.
        """
        waits = injury.fault.seconds if injury.job_id is None else 0.0
        ready = injury.at + waits
        with self._guard:
            before = None if waits else self._last
            self._open.append(Wound(injury, before, ready))

    def _run(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            look = self._look()
            with self._guard:
                self._last = look or self._last
                self._open = [wound for wound in self._open if not self._is_healed(wound, look)]

    def _is_healed(self, wound: Wound, look: Look | None) -> bool:
        now = time.monotonic()
        if now < wound.ready:
            return False
        if wound.injury.fault.kind == Kind.KILL_API:
            healed = self._api_is_ready()
        elif look is None or look.at < wound.ready:
            return False
        elif wound.before is None:
            wound.before = look
            return False
        else:
            healed = progressed(wound.injury, wound.before, look)
        if healed:
            self.seconds.append((wound.injury.fault.kind, now - wound.ready))
        return healed

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._rig.stack.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _look(self) -> Look | None:
        ids = [wound.injury.job_id for wound in self._open if wound.injury.job_id]
        at = time.monotonic()
        with suppress(OperationalError), self._rig.engine.connect() as connection:
            jobs = connection.execute(text(JOBS), {"ids": ids}).mappings().all()
            claims = connection.execute(text(CLAIMS)).mappings().one()
            results = connection.execute(text(RESULTS)).scalar()
            return Look(at, {job["id"]: job for job in jobs}, dict(claims), results)
        return None


def progressed(injury: Injury, before: Look, now: Look) -> bool:
    """Whether what was hit has got further."""
    if injury.job_id is not None:
        job, then = now.jobs.get(injury.job_id), before.jobs.get(injury.job_id)
        return job is None or then is None or _further(then, job)
    match injury.fault.kind:
        case Kind.KILL_INTERACTIVE:
            return now.claims["interactive"] != before.claims["interactive"]
        case Kind.KILL_POSTGRES | Kind.KILL_BACKEND:
            return now.claims != before.claims or bool(now.trained - before.trained)
        case kind if kind.name.startswith("STORE") or kind == Kind.FILL_DISK:
            return now.stored != before.stored
        case _:
            return now.claims != before.claims


def _further(then: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    if job["state"] not in ("queued", "running"):
        return True
    place = job["attempt"], job["step"], job["phase"]
    return job["step"] is not None and place != (then["attempt"], then["step"], then["phase"])
