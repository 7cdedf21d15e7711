"""Spans of calls and jobs, for an OpenTelemetry collector if the settings name one; otherwise its SDK is not imported.

A job is done for the requests of several owners: it has a trace of its own, whose id is that of the job.
The span of the call that queued it and the job's first span link to each other.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from expunge.registry.settings import Settings

if TYPE_CHECKING:
    from expunge.registry.telemetry import Telemetry

TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context's header of this name."""

Value = str | int | float | bool

_telemetry: "Telemetry | None" = None


class Span:
    """Something that takes time; this one is told to nobody."""

    def __init__(self, trace_id: str = "") -> None:
        self.trace_id = trace_id
        """32 hexadecimal digits; empty where the caller sent none and nothing is traced."""

    def describe(
        self, attributes: Mapping[str, Value], *, failed: bool, name: str | None = None
    ) -> None:
        """Say what is known only at its end."""


def start(settings: Settings, service: str) -> None:
    """Begin to tell spans of this process, `service`, where the settings say; without an address, nothing happens.

    Ends the process with the reason where what is needed for it is not installed.
    """
    global _telemetry  # noqa: PLW0603 - as logging is: one for the process
    if not settings.otlp_endpoint or _telemetry is not None:
        return
    try:
        from expunge.registry.telemetry import Telemetry  # noqa: PLC0415 - an extra
    except ImportError as error:
        sys.exit(f"EXPUNGE_OTLP_ENDPOINT needs the extra `tracing` of this package: {error}")
    _telemetry = Telemetry(settings.otlp_endpoint, service)


def stop() -> None:
    """Send what has not been sent, for a few seconds at most."""
    global _telemetry  # noqa: PLW0603 - see `start`
    if _telemetry is not None:
        _telemetry.close()
        _telemetry = None


@contextmanager
def call(method: str, traceparent: str) -> Iterator[Span]:
    """A call that this process answers, in the caller's trace if it names one."""
    found = TRACEPARENT.fullmatch(traceparent)
    if _telemetry is None:
        yield Span(found[1] if found else "")
        return
    with _telemetry.call(method, traceparent if found else "") as span:
        yield span


def queued(job_id: str, kind: str) -> None:
    """A job was queued by what runs now."""
    if _telemetry is not None:
        _telemetry.queued(job_id, kind)


def attempt(job_id: str, kind: str, number: int) -> AbstractContextManager[Span]:
    """An attempt at a job, in the job's trace."""
    return nullcontext(Span()) if _telemetry is None else _telemetry.attempt(job_id, kind, number)


def happened(event: str) -> None:
    """Note a moment of what runs now."""
    if _telemetry is not None:
        _telemetry.happened(event)


def phase(name: str) -> AbstractContextManager[Span]:
    """A part of what runs now."""
    return nullcontext(Span()) if _telemetry is None else _telemetry.phase(name)
