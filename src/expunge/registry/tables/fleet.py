"""Which workers there are: what each says of itself while it lives."""

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, String, func
from sqlalchemy.orm import Mapped, mapped_column

from expunge.registry.tables.base import Table


class Worker(Table):
    """A worker process. What it works at is in the rows of the jobs that it holds a lease on."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    """As jobs name who holds their lease."""
    role: Mapped[str]
    kinds: Mapped[list[str]] = mapped_column(ARRAY(String))
    """The kinds of job that it does."""
    host: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    device: Mapped[str]
    """`cpu`, `cuda` or one of several: `cuda:1`."""
    device_name: Mapped[str | None]
    device_id: Mapped[str | None]
    """The same for all workers on one device; none for a CPU, which many may share."""
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of the device; none for a CPU."""
    labels: Mapped[list[str]] = mapped_column(ARRAY(String))
    """What jobs may ask for: the kind of device, and what its operator calls it."""
    stopping: Mapped[bool] = mapped_column(default=False)
    """It takes no more jobs."""
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
