"""Workers and queues, and the call that shows them, for operators."""

from datetime import datetime

from expunge.client.calls import Calls, get
from expunge.client.resources import Resource


class HeldJob(Resource):
    """A job that a worker is at; `share_done` is of its steps."""

    id: str
    kind: str
    attempt: int
    seconds: float
    share_done: float | None
    eta_seconds: float | None


class Worker(Resource):
    """A worker process; `state` is idle, busy, stopping or gone."""

    name: str
    role: str
    state: str
    kinds: list[str]
    labels: list[str]
    device: str
    device_name: str | None
    memory_bytes: int | None
    shares_device_with: list[str]
    jobs: list[HeldJob]
    host: str
    pid: int
    version: str
    started_at: datetime
    last_seen_at: datetime
    silent_seconds: float


class Queue(Resource):
    """Jobs of one kind that have not ended; `later` are not due yet."""

    kind: str
    waiting: int
    later: int
    running: int
    oldest_seconds: float | None


class Unserved(Resource):
    """Jobs that wait for a worker that is not there."""

    reason: str
    jobs: int


class Fleet(Resource):
    """Who works, and what there is to do."""

    workers: list[Worker]
    queues: list[Queue]
    unserved: list[Unserved]


class FleetCalls(Calls):
    """Who works, and what there is to do."""

    def fleet(self) -> Fleet:
        """All workers, how much waits, and what nobody who is there can do."""
        return Fleet.model_validate(get(self._transport, "/workers"))
