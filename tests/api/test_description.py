"""What the service says of itself: health, methods, OpenAPI, documentation, request ids; and what it never says."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.conftest import User, problem_of

from expunge.api.app import create_app
from expunge.registry.settings import Settings
from expunge.unlearning.catalog import METHODS

CHECKS = ("database", "migrations", "objects", "redis", "dispatcher", "clock", "work_dir")


@pytest.fixture(scope="module")
def document(anonymous: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = anonymous.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    for name, operation in operations(document).items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= tags, name


def test_every_refusal_is_described_as_a_problem(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            if int(status) >= 400 and name != "show_readiness":
                assert list(response["content"]) == ["application/problem+json"], (name, status)
        if operation.get("security"):
            assert "401" in operation["responses"], name


def test_what_makes_something_links_to_every_call_about_it(document: dict[str, Any]) -> None:
    known = operations(document)
    made = document["paths"]["/datasets"]["post"]["responses"]["201"]["links"]
    about = {
        operation["operationId"]
        for path, item in document["paths"].items()
        if re.findall(r"{(\w+)}", path) == ["dataset_id"]
        for operation in item.values()
    }
    assert made.keys() == about > {"show_dataset", "seal_dataset", "list_samples"}
    for operation in known.values():
        for response in operation["responses"].values():
            for name, link in response.get("links", {}).items():
                named = {each["name"] for each in known[name]["parameters"] if each["in"] == "path"}
                assert link["parameters"].keys() == named


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in set(re.findall(r"#/components/schemas/([^\"']+)", str(document))):
        assert name in schemas
    assert not {"HTTPValidationError", "ValidationError"} & schemas.keys()


def test_the_documentation_needs_no_network(anonymous: httpx.Client) -> None:
    page = anonymous.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert anonymous.get(address).status_code == 200, address


def test_methods_are_listed_with_bounds_and_defaults(anonymous: httpx.Client) -> None:
    items = anonymous.get("/methods").json()["items"]
    assert [each["id"] for each in items] == list(METHODS)
    first = items[0]
    assert first.keys() == {
        "id", "title", "summary", "source", "frameworks", "experimental", "parameters", "defaults",
    }  # fmt: skip
    beta = first["parameters"]["properties"]["beta"]
    assert (beta["minimum"], beta["maximum"], beta["default"]) == (0, 100, 8.0)
    for item in items:
        method = METHODS[item["id"]]
        assert item["experimental"] is method.experimental
        assert item["defaults"] == {name: method.defaults_for(name) for name in method.frameworks}
    assert {each["id"] for each in items if each["experimental"]} == {
        "contrastive_unlearning", "coun",
    }  # fmt: skip


def test_a_running_service_is_healthy_and_ready(anonymous: httpx.Client) -> None:
    assert anonymous.get("/healthz").json() == {"status": "ok"}
    assert anonymous.get("/readyz").json() == {
        "status": "ready",
        "checks": dict.fromkeys(CHECKS, "ok") | dict.fromkeys(("redis", "dispatcher"), "warning"),
    }


@pytest.mark.anyio
async def test_without_a_database_it_is_healthy_but_not_ready(tmp_path: Path) -> None:
    settings = Settings(
        database_url=f"postgresql+psycopg://nobody@/nothing?host={tmp_path}",
        object_store=(tmp_path / "objects").as_uri(),
        work_dir=tmp_path / "work",
    )
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        assert (await http.get("/healthz")).status_code == 200
        readiness = await http.get("/readyz")
        assert readiness.status_code == 503
        assert readiness.json() == {
            "status": "not_ready",
            "checks": dict.fromkeys(CHECKS, "ok")
            | dict.fromkeys(("database", "migrations"), "failed")
            | dict.fromkeys(("redis", "dispatcher", "clock"), "warning"),
        }
        answer = await http.get("/me", headers={"Authorization": "Bearer xpk_x"})
        problem_of(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert str(tmp_path) not in answer.text + readiness.text


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_every_answer_carries_a_request_id(anonymous: httpx.Client) -> None:
    first, second = anonymous.get("/healthz"), anonymous.get("/nowhere")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    kept = anonymous.get("/healthz", headers={"X-Request-Id": "from-the-proxy-1"})
    assert kept.headers["x-request-id"] == "from-the-proxy-1"
    replaced = anonymous.get("/healthz", headers={"X-Request-Id": "x" * 500})
    assert re.fullmatch(r"[0-9a-f]{32}", replaced.headers["x-request-id"])


def test_an_unforeseen_error_tells_nothing_but_where_to_look(
    data_owner: User, settings: Settings
) -> None:
    """The folder for uploads is gone: nobody's input is at fault."""
    dataset = data_owner.open_dataset()
    moved = settings.work_dir.with_name("moved")
    settings.work_dir.rename(moved)
    try:
        answer = data_owner.put_shard(dataset, b"x")
    finally:
        moved.rename(settings.work_dir)
    problem = problem_of(answer, 500, "internal")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert str(settings.work_dir) not in answer.text
    assert "Error" not in problem["detail"]


def test_log_lines_of_a_call_name_it_and_its_caller_s_trace(
    data_owner: User, caplog: pytest.LogCaptureFixture
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Id": "from-the-proxy-2"}
    with caplog.at_level("INFO"):
        data_owner.get("/me", headers=sent)
        data_owner.get("/me", headers={"traceparent": "nonsense", "X-Request-Id": "the-other-one"})
    lines = [each.msg for each in caplog.records if isinstance(each.msg, dict)]
    [line] = [each for each in lines if each.get("request_id") == "from-the-proxy-2"]
    assert (line["event"], line["trace_id"]) == ("request", trace)
    [line] = [each for each in lines if each.get("request_id") == "the-other-one"]
    assert "trace_id" not in line
