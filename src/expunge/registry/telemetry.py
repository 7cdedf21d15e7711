"""Spans as OpenTelemetry has them, sent over HTTP from a thread. Imported only where a collector is named."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from expunge.registry.spans import Span, Value

EXPORT_SECONDS = 5.0
"""For one batch, and for the last one when a process ends."""

_first: ContextVar[SpanContext | None] = ContextVar("first span of a job", default=None)


class _Ids(RandomIdGenerator):
    """Random ones, but for the first span of a job."""

    def generate_trace_id(self) -> int:
        """16 bytes."""
        first = _first.get()
        return super().generate_trace_id() if first is None else first.trace_id

    def generate_span_id(self) -> int:
        """8 bytes."""
        first = _first.get()
        return super().generate_span_id() if first is None else first.span_id


class _Traced(Span):
    def __init__(self, span: trace.Span) -> None:
        super().__init__(trace.format_trace_id(span.get_span_context().trace_id))
        self._span = span

    def describe(
        self, attributes: Mapping[str, Value], *, failed: bool, name: str | None = None
    ) -> None:
        self._span.set_attributes(attributes)
        if name is not None:
            self._span.update_name(name)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))


class Telemetry:
    """The spans of one process on their way to a collector."""

    def __init__(self, endpoint: str, service: str) -> None:
        exporter = OTLPSpanExporter(
            endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS
        )
        named = {"service.name": service, "service.version": version("expunge")}
        self._provider = TracerProvider(
            resource=Resource.create(named), id_generator=_Ids(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("expunge")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    @contextmanager
    def call(self, method: str, traceparent: str) -> Iterator[Span]:
        """As `spans.call`."""
        caller = self._propagator.extract({"traceparent": traceparent}, context=Context())
        told = {"http.request.method": method}
        with self._started(method, context=caller, kind=SpanKind.SERVER, attributes=told) as span:
            yield span

    def queued(self, job_id: str, kind: str) -> None:
        """As `spans.queued`."""
        here, first = trace.get_current_span(), _first_of(job_id)
        links = []
        if here.get_span_context().is_valid:
            here.add_link(first)
            links.append(Link(here.get_span_context()))
        token = _first.set(first)
        try:
            self._tracer.start_span(
                f"queue {kind}",
                context=Context(),
                kind=SpanKind.PRODUCER,
                links=links,
                attributes={"expunge.job.id": job_id, "expunge.job.kind": kind},
            ).end()
        finally:
            _first.reset(token)

    @contextmanager
    def attempt(self, job_id: str, kind: str, number: int) -> Iterator[Span]:
        """As `spans.attempt`."""
        queue = trace.set_span_in_context(trace.NonRecordingSpan(_first_of(job_id)), Context())
        told = {
            "expunge.job.id": job_id,
            "expunge.job.kind": kind,
            "expunge.job.attempt": number,
        }
        with self._started(
            f"attempt {kind}", context=queue, kind=SpanKind.CONSUMER, attributes=told
        ) as span:
            yield span

    def happened(self, event: str) -> None:
        """As `spans.happened`."""
        trace.get_current_span().add_event(event)

    @contextmanager
    def phase(self, name: str) -> Iterator[Span]:
        """As `spans.phase`."""
        with self._started(name) as span:
            yield span

    @contextmanager
    def _started(self, name: str, **how: Any) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False, **how
        ) as span:
            try:
                yield _Traced(span)
            except Exception as error:
                # Not its words: they may name samples, or hold what a caller sent.
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise


def _first_of(job_id: str) -> SpanContext:
    """Of the span that says when a job was queued; its ids are parts of the job's."""
    digits = job_id.rpartition("_")[2]
    return SpanContext(
        trace_id=int(digits, 16),
        span_id=int(digits[-16:], 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
