"""Does to a running service what a schedule says, and ends what lasts. Never waits for a recovery."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil
import redis
from tests.faults.proxy import Mode
from tests.faults.rig import Rig, command_of
from tests.faults.schedule import NEEDS_A_DISK, Fault, Kind

PROCESSES = {
    Kind.KILL_INTERACTIVE: "interactive",
    Kind.KILL_API: "api",
    Kind.KILL_DISPATCH: "dispatch",
    Kind.KILL_REDIS: "redis",
    Kind.KILL_POSTGRES: "postgres",
}
MODES = {
    Kind.STORE_REFUSES: Mode.REFUSE,
    Kind.STORE_STALLS: Mode.STALL,
    Kind.STORE_CUTS: Mode.CUT,
    Kind.STORE_UNAVAILABLE: Mode.UNAVAILABLE,
}
BACKEND = "postgres: expunge"
FIND_SECONDS = 15.0
"""To wait for something that can be hit, such as a training process."""


@dataclass(frozen=True)
class Injury:
    """A fault that was done."""

    fault: Fault
    at: float
    """When (time.monotonic)."""
    job_id: str | None
    """The job whose executor was hit."""
    hit: bool
    """False if there was nothing to hit."""


class Injurer:
    """Carries out faults one after the other; those that last overlap with the next ones."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._ends: list[tuple[float, Callable[[], None]]] = []

    def kinds(self) -> list[Kind]:
        """What can be done to this rig."""
        return [
            kind
            for kind in Kind
            if (kind not in MODES or self._rig.proxy is not None)
            and (kind not in NEEDS_A_DISK or self._rig.work_disk is not None)
        ]

    def wait(self, seconds: float) -> None:
        """Let time pass; what has lasted long enough ends meanwhile."""
        until = time.monotonic() + seconds
        while True:
            due = [end for end in self._ends if end[0] <= time.monotonic()]
            self._ends = [end for end in self._ends if end not in due]
            for _, end in due:
                end()
            now = time.monotonic()
            if now >= until:
                return
            time.sleep(max(0.0, min([until, *(at for at, _ in self._ends)]) - now))

    def end_all(self) -> None:
        """Wait until nothing lasts any more."""
        while self._ends:
            self.wait(max(0.0, min(at for at, _ in self._ends) - time.monotonic()))

    def do(self, fault: Fault) -> Injury:
        """Do it now."""
        match fault.kind:
            case Kind.KILL_TRAINER | Kind.KILL_TRAINING | Kind.PAUSE_TRAINER | Kind.PAUSE_FAMILY:
                return self._hit_trainer(fault)
            case Kind.KILL_BACKEND:
                hit = kill_backend(self._rig, fault.draw)
            case Kind.FLUSH_REDIS:
                hit = flush_redis(self._rig)
            case Kind.FILL_DISK:
                hit = self._fill_disk(fault)
            case kind if kind in MODES:
                hit = self._spoil_store(fault, MODES[kind])
            case kind:
                self._rig.process(PROCESSES[kind]).kill()
                hit = True
        return Injury(fault, time.monotonic(), None, hit)

    def _hit_trainer(self, fault: Fault) -> Injury:
        """Of the train workers one that trains, if any does soon."""
        rig = self._rig
        name = rig.trainers[fault.draw % len(rig.trainers)]
        until = time.monotonic() + FIND_SECONDS
        while not (busy := [each for each in rig.trainers if rig.training(each)]):
            if time.monotonic() > until:
                break
            self.wait(0.05)
        name = busy[fault.draw % len(busy)] if busy else name
        worker, children = rig.process(name), rig.training(name)
        job_id = rig.job_of(name)
        hit = True
        match fault.kind:
            case Kind.KILL_TRAINER:
                worker.kill()
            case Kind.KILL_TRAINING:
                hit = bool(children)
                send(children, signal.SIGKILL)
            case Kind.PAUSE_TRAINER:
                self._pause(fault, [worker])
            case _:
                self._pause(fault, [worker, *children])
        return Injury(fault, time.monotonic(), job_id, hit)

    def _pause(self, fault: Fault, processes: list[psutil.Process]) -> None:
        send(processes, signal.SIGSTOP)
        self._later(fault, lambda: send(processes, signal.SIGCONT))

    def _spoil_store(self, fault: Fault, mode: Mode) -> bool:
        proxy = self._rig.proxy
        assert proxy is not None
        proxy.set(mode)
        self._later(fault, lambda: proxy.set(Mode.PASS))
        return True

    def _fill_disk(self, fault: Fault) -> bool:
        disk = self._rig.work_disk
        assert disk is not None
        disk.fill()
        self._later(fault, disk.free)
        return True

    def _later(self, fault: Fault, end: Callable[[], None]) -> None:
        self._ends.append((time.monotonic() + fault.seconds, end))


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that still run."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill_backend(rig: Rig, draw: int) -> bool:
    """Kill one server process of PostgreSQL: all others end with it, and it recovers by itself."""
    backends = [
        child
        for child in rig.process("postgres").children()
        if "".join(command_of(child)).startswith(BACKEND)
    ]
    if backends:
        send([backends[draw % len(backends)]], signal.SIGKILL)
    return bool(backends)


def flush_redis(rig: Rig) -> bool:
    """Empty Redis; False if it is not there to be emptied."""
    path = rig.stack.environment["EXPUNGE_REDIS_URL"].removeprefix("redis+socket://")
    with redis.Redis(unix_socket_path=path, socket_timeout=2) as server:
        try:
            return bool(server.flushall())
        except redis.RedisError:
            return False
