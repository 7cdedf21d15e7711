"""A call and the job that it queued, as a collector gets them."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from tests.api.conftest import User, images
from tests.registry.collector import Collector, collecting

from expunge.api.app import create_app
from expunge.registry.database import Sessions
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.registry.tables import Job, JobKind
from expunge.worker.context import Context
from expunge.worker.running import Runner

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_call_and_the_job_that_it_queued_are_traced(
    *,
    collector: Collector,
    settings: Settings,
    data_owner: User,
    session_factory: Sessions,
    tmp_path: Path,
) -> None:
    dataset = data_owner.dataset(images("traced", 2))
    traced = settings.model_copy(
        update={"otlp_endpoint": collector.endpoint, "work_dir": tmp_path / "work"}
    )
    app = create_app(traced)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        headers = {
            "Authorization": data_owner.http.headers["Authorization"],
            "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
            "X-Request-Id": "the-traced-one",
        }
        answer = await http.post(f"/datasets/{dataset}/seal", headers=headers)
        assert answer.status_code == 202, answer.text
        context = Context(traced, session_factory, open_store(traced))
        Runner(context, list(JobKind)).work_off()
        context.close()

    found = collector.spans()
    with session_factory() as session:
        job_id = session.scalars(select(Job.id).where(Job.dataset_id == dataset)).one()
    called = found["POST /datasets/{dataset_id}/seal"]
    assert called.trace_id.hex() == TRACE
    told = {each.key: each.value for each in called.attributes}
    assert told["http.route"].string_value == "/datasets/{dataset_id}/seal"
    assert told["http.response.status_code"].int_value == 202
    assert told["expunge.request.id"].string_value == "the-traced-one"
    assert [each.trace_id.hex() for each in called.links] == [job_id.removeprefix("job_")]

    tried = found["attempt seal"]
    assert tried.trace_id.hex() == job_id.removeprefix("job_")
    assert tried.parent_span_id == called.links[0].span_id == found["queue seal"].span_id
    told = {each.key: each.value for each in tried.attributes}
    assert told["expunge.job.outcome"].string_value == "succeeded"
    assert dataset not in str(collector.received)
