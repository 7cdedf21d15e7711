"""Carries a training run's snapshots between its folder and the object store, beside the training.

Every object lies under the attempt's lease token, and is named by the job under that token only.
"""

import os
import threading
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path

import structlog
from sqlalchemy import select

from expunge.formats.digests import sha256_file
from expunge.registry import jobs, orphans
from expunge.registry.objects import ObjectDamaged, ObjectMissing, fetch
from expunge.registry.tables import Job
from expunge.registry.transitions import LeaseLost
from expunge.worker import metering
from expunge.worker.context import Context
from expunge.worker.leases import OUTAGES, Held

SNAPSHOT = "snapshot.safetensors"
UPLOAD_GRACE_SECONDS = 5.0
"""For the last snapshot of a process that was stopped."""

logger = structlog.get_logger(__name__)


class Courier:
    """Of one attempt; `path` is where the training process keeps its snapshot."""

    def __init__(self, context: Context, held: Held, folder: Path) -> None:
        self.path = folder / SNAPSHOT
        self._context = context
        self._held = held
        self._folder = folder
        self._waiting: tuple[Path, int] | None = None
        self._guard = threading.Condition()
        self._busy = False
        self._written = 0
        self._key: str | None = None
        """The newest object; the job names it, or did until it ended."""

    def bring(self, key: str | None) -> None:
        """Put the last attempt's snapshot where the training process finds it, if there is a good one.

        Raises:
            LeaseLost, Stopped, and what `Held.patiently` raises.
        """
        if key is None:
            return
        self._key = key
        held = self._held
        try:
            held.patiently(lambda: fetch(self._context.store, key, self.path, check=held.check))
        except (ObjectMissing, ObjectDamaged) as error:
            self.refused(str(error))

    def refused(self, reason: str) -> None:
        """Note that the snapshot cannot be gone on from: the run starts from the beginning.

        Raises:
            LeaseLost: the job was given away.
        """

        def note() -> None:
            with self._context.sessions.begin() as session:
                jobs.drop_snapshot(session, self._held.lease, reason)

        self._held.patiently(note)
        self.tidy()
        self._key = None

    def written(self, step: int) -> None:
        """Upload the snapshot that was just written, unless an upload still runs: then the newest waits."""
        with self._guard:
            self._written += 1
            link = self._folder / f"upload-{self._written}"
            try:
                # The training process replaces its file, so that this one never changes.
                os.link(self.path, link)
            except FileNotFoundError:
                return
            if self._waiting is not None:
                self._waiting[0].unlink(missing_ok=True)
            self._waiting = (link, step)
            if not self._busy:
                self._busy = True
                # With the attempt's names on its log lines.
                run = copy_context().run
                threading.Thread(
                    target=run, args=(self._work,), name="courier", daemon=True
                ).start()

    def finish(self) -> None:
        """Wait until the newest snapshot is stored, for at most UPLOAD_GRACE_SECONDS."""
        with self._guard:
            self._guard.wait_for(lambda: not self._busy, UPLOAD_GRACE_SECONDS)

    def tidy(self) -> None:
        """Remove the stored snapshot if no job names it any more; what cannot be removed, a sweep removes."""
        self.finish()
        if self._busy or self._key is None:
            return
        with suppress(*OUTAGES):
            with self._context.sessions() as session:
                job = select(Job.snapshot_key).where(Job.id == self._held.lease.job_id)
                named = session.scalar(job)
            if named != self._key:
                self._context.store.delete(self._key)

    def _work(self) -> None:
        while True:
            with self._guard:
                if self._waiting is None:
                    self._busy = False
                    self._guard.notify_all()
                    return
                (link, step), self._waiting = self._waiting, None
            try:
                self._store(link, step)
            except LeaseLost:
                pass
            except (*OUTAGES, OSError) as error:
                # Training goes on: the next snapshot may have better luck.
                logger.warning("snapshot was not stored", step=step, error=str(error))
            finally:
                link.unlink(missing_ok=True)

    def _store(self, link: Path, step: int) -> None:
        lease, before = self._held.lease, self._key
        with metering.SNAPSHOT_SECONDS.time():
            key = orphans.put(
                self._context.sessions,
                self._context.store,
                link,
                sha256_file(link),
                lease=lease,
                under=f"snapshots/{lease.job_id}/{lease.token}",
            )
        self._key = key
        with self._context.sessions.begin() as session:
            jobs.note_snapshot(session, lease, key, step)
        logger.info("snapshot stored", step=step)
        if before is not None and before != key:
            with suppress(*OUTAGES):
                self._context.store.delete(before)
