"""A worker's entry in the registry, kept fresh from a thread. Never decides what the worker does."""

import os
import platform
import threading
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import version

import structlog

from expunge.registry import fleet
from expunge.registry.fleet import Presence
from expunge.registry.settings import Settings
from expunge.registry.tables import JobKind
from expunge.worker.context import Context
from expunge.worker.device import Device

logger = structlog.get_logger(__name__)


def labels_of(settings: Settings, device: Device) -> list[str]:
    """What a worker offers to models: its kind of device, and what its operator says."""
    return sorted({device.kind, *settings.worker_labels})


def presence_of(
    name: str, role: str, kinds: Collection[JobKind], device: Device, labels: list[str]
) -> Presence:
    """What a worker that starts now says of itself."""
    return Presence(
        name=name,
        role=role,
        kinds=[kind.value for kind in kinds],
        host=platform.node(),
        pid=os.getpid(),
        version=version("expunge"),
        device=device.place,
        device_name=device.name,
        device_id=device.id,
        memory_bytes=device.memory_bytes,
        labels=labels,
        started_at=datetime.now(UTC),
    )


def presence_of_dispatcher() -> Presence:
    """What a dispatcher that starts now says of itself: it does no jobs, and needs no device."""
    host = platform.node()
    return Presence(
        name=f"{fleet.DISPATCHER}-{os.getpid()}@{host}",
        role=fleet.DISPATCHER,
        kinds=[],
        host=host,
        pid=os.getpid(),
        version=version("expunge"),
        device="none",
        device_name=None,
        device_id=None,
        memory_bytes=None,
        labels=[],
        started_at=datetime.now(UTC),
    )


class SignsOfLife:
    """Tells the registry every few seconds that a worker is there, and at last that it is not."""

    def __init__(self, context: Context, presence: Presence) -> None:
        self._context = context
        self._presence = presence
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._neighbours: set[str] = set()

    def start(self) -> None:
        """Enter the worker now, through an outage of the database if there is one."""
        self._thread.start()

    def stop(self) -> None:
        """Strike the worker out; what cannot be written now, its silence says later."""
        self._ended.set()
        self._thread.join()
        try:
            with self._context.sessions.begin() as session:
                fleet.leave(session, self._presence.name)
        # The worker has done its work.
        except Exception as error:
            logger.warning("left without a word", error=str(error))

    def _run(self) -> None:
        while True:
            try:
                self._beat()
            # The next one may get through; the work goes on meanwhile.
            except Exception as error:
                logger.warning("sign of life failed", error=str(error))
            if self._ended.wait(fleet.BEAT_SECONDS):
                return

    def _beat(self) -> None:
        with self._context.sessions.begin() as session:
            fleet.beat(session, self._presence, stopping=self._context.stopping.is_set())
            shared = fleet.sharing(fleet.workers(session), fleet.now(session))
        neighbours = set(shared.get(self._presence.name, ()))
        for other in sorted(neighbours - self._neighbours):
            logger.warning(
                "another worker uses the same device; both may run out of memory",
                other=other,
                device=self._presence.device,
            )
        self._neighbours = neighbours
