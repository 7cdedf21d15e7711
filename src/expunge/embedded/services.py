"""The service processes of a stack: how each is called, started, configured and stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HOST = "127.0.0.1"
API_GRACE_SECONDS = 5.0
# A worker that trains lets its training process write a snapshot and gives the job back.
WORKER_GRACE_SECONDS = 20.0
# Open event streams would hold up the stop; watchers resume where they were.
API_STREAM_GRACE_SECONDS = 2


@dataclass(frozen=True)
class Service:
    """One Python process of the stack."""

    name: str
    """Never changes from one start to the next; also the name of the log."""
    title: str
    """As messages call it."""
    module: tuple[str, ...]
    """What follows `python -m`."""
    grace_seconds: float
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of this process alone."""
    files: tuple[int, ...] = ()
    """Open files of the stack that it has too, by number."""


def services(
    listener: int, devices: Sequence[str], api_processes: int, shared: Mapping[str, str]
) -> list[Service]:
    """The api's processes, the dispatcher, a train worker per device, and the interactive worker.

    The api's processes accept what comes to `listener`, a file number, and have `shared` in their
    environment. The interactive worker encodes on the first of the devices.
    """
    serve = ["expunge.api", "--fd", str(listener)]
    serve += ["--timeout-graceful-shutdown", str(API_STREAM_GRACE_SECONDS)]
    return [
        *(
            Service(name, f"The {name}", tuple(serve), API_GRACE_SECONDS, shared, (listener,))
            for name in ("api", *(f"api-{number}" for number in range(1, api_processes)))
        ),
        Service("dispatch", "The dispatcher", _worker("dispatch"), WORKER_GRACE_SECONDS),
        *(
            Service(
                f"train-{number}",
                f"The worker train-{number}",
                _worker("train"),
                WORKER_GRACE_SECONDS,
                {"EXPUNGE_DEVICE": device},
            )
            for number, device in enumerate(devices)
        ),
        Service(
            "interactive",
            "The interactive worker",
            _worker("interactive"),
            WORKER_GRACE_SECONDS,
            {"EXPUNGE_DEVICE": devices[0]},
        ),
    ]


def _worker(role: str) -> tuple[str, ...]:
    return ("expunge.worker", role)
