"""Spans reach a collector over HTTP as OpenTelemetry writes them; without one neither SDK nor exporter is imported."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.registry.collector import Collector, collecting

from expunge.registry import spans
from expunge.registry.ids import Prefix, new_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def attributes(span: Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_job_has_a_trace_of_its_own_that_its_call_links_to(collector: Collector) -> None:
    collector.start()
    job_id = new_id(Prefix.JOB)
    with spans.call("POST", CALLER) as call:
        assert call.trace_id == TRACE
        spans.queued(job_id, "unlearn")
        call.describe({"http.route": "/requests"}, failed=False, name="POST /requests")
    with spans.attempt(job_id, "unlearn", 2) as attempt:
        with spans.phase("staging"):
            pass
        spans.happened("evaluating")
        attempt.describe({"expunge.job.outcome": "crashed"}, failed=True)

    found = collector.spans()
    assert set(collector.paths) == {"/v1/traces"}
    called, queued = found["POST /requests"], found["queue unlearn"]
    tried, staged = found["attempt unlearn"], found["staging"]
    assert called.trace_id.hex() == TRACE
    assert called.parent_span_id.hex() == CALLER.split("-")[2]
    assert attributes(called) == {"http.request.method": "POST", "http.route": "/requests"}

    assert {each.trace_id.hex() for each in (queued, tried, staged)} == {job_id[4:]}
    assert not queued.parent_span_id
    assert tried.parent_span_id == queued.span_id
    assert staged.parent_span_id == tried.span_id
    assert [each.span_id for each in called.links] == [queued.span_id]
    assert [each.span_id for each in queued.links] == [called.span_id]
    assert [each.name for each in tried.events] == ["evaluating"]
    assert tried.status.code == Status.STATUS_CODE_ERROR
    assert called.status.code == Status.STATUS_CODE_UNSET
    assert attributes(tried) == {
        "expunge.job.id": job_id,
        "expunge.job.kind": "unlearn",
        "expunge.job.attempt": 2,
        "expunge.job.outcome": "crashed",
    }
    resource = collector.received[0].resource_spans[0].resource
    named = {each.key: each.value.string_value for each in resource.attributes}
    assert named["service.name"] == "expunge-test"


def test_of_what_goes_wrong_the_kind_is_told_and_no_word(collector: Collector) -> None:
    collector.start()
    with (
        pytest.raises(ValueError, match="private"),
        spans.attempt(new_id(Prefix.JOB), "unlearn", 1),
        spans.phase("staging"),
    ):
        raise ValueError("holiday-private-17.png is damaged")
    found = collector.spans()
    for span in found.values():
        assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "ValueError")
    assert "private" not in str(collector.received)


def test_what_the_caller_does_not_sample_is_not_sent(collector: Collector) -> None:
    collector.start()
    with spans.call("GET", CALLER[:-2] + "00") as unsampled:
        assert unsampled.trace_id == TRACE
    with spans.call("PUT", "00-nonsense") as own:
        assert own.trace_id not in ("", TRACE)
    assert set(collector.spans()) == {"PUT"}


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (CALLER, TRACE),
        ("", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (CALLER.upper(), ""),
        (CALLER + "-more", ""),
    ],
)
def test_without_a_collector_a_caller_s_trace_is_known_and_nothing_told(
    header: str, trace: str
) -> None:
    with spans.call("GET", header) as call:
        assert call.trace_id == trace
        spans.queued(new_id(Prefix.JOB), "audit")
        spans.happened("nothing")
        call.describe({"a": 1}, failed=False)


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    code = (
        "import sys\n"
        "from expunge.registry import spans\n"
        "from expunge.registry.settings import Settings\n"
        "spans.start(Settings(database_url='x', object_store='x'), 'test')\n"
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_collector_without_the_extra_ends_the_process_with_the_reason() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from expunge.registry import spans\n"
        "from expunge.registry.settings import Settings\n"
        "spans.start(Settings(database_url='x', object_store='x', otlp_endpoint='http://c:1'), 'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "EXPUNGE_OTLP_ENDPOINT needs the extra `tracing`" in done.stderr
    assert "Traceback" not in done.stderr
