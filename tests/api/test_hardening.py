"""What surrounds every answer: headers that keep browsers from harm, nothing open that is not named, JSON in bounds."""

import base64
import hashlib
import re

import httpx
import pytest
from tests.api.conftest import User, problem_of
from tests.api.test_access import OPERATIONS

from expunge.api.app import KEYED, OPEN, create_app
from expunge.api.bodies import MAX_JSON_DEPTH
from expunge.api.problems import MAX_ERRORS
from expunge.api.routes import metrics
from expunge.registry.settings import Settings

PROTECTING = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def test_nothing_is_served_but_what_the_description_names_and_the_description() -> None:
    app = create_app(Settings(database_url="postgresql+psycopg:///none", object_store="file:///x"))
    alone = {path for route in app.routes if (path := getattr(route, "path", None))}
    assert alone == {"/openapi.json", "/docs", "/docs/assets"}
    routers = (*OPEN, *KEYED, metrics.router)
    assert {getattr(route, "name", "") for each in routers for route in each.routes} == set(
        OPERATIONS
    )


@pytest.mark.parametrize("path", ["/healthz", "/me", "/nowhere", "/docs", "/openapi.json"])
def test_every_answer_protects_whoever_opens_it_in_a_browser(
    anonymous: httpx.Client, path: str
) -> None:
    headers = anonymous.get(path).headers
    assert {name: headers[name] for name in PROTECTING} == PROTECTING
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"]
    assert "strict-transport-security" not in headers, "not over plain http"


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_so_does_every_refusal(anonymous: httpx.Client, data_owner: User, name: str) -> None:
    method, path = OPERATIONS[name]
    for answer in (
        anonymous.request(method, path, json=[]),
        data_owner.http.request(method, path, json=[]),
        anonymous.request("PATCH" if method != "PATCH" else "GET", path),
    ):
        assert PROTECTING.items() <= dict(answer.headers).items()
        assert answer.headers["cache-control"], "said or no-store"
        assert answer.headers["content-security-policy"]


def test_over_https_browsers_are_told_to_stay_there(anonymous: httpx.Client) -> None:
    answer = anonymous.get("/healthz", headers={"X-Forwarded-Proto": "https"})
    assert answer.headers["strict-transport-security"].startswith("max-age=")


def test_private_answers_are_not_stored(data_owner: User) -> None:
    assert data_owner.get("/me").headers["cache-control"] == "no-store"


def test_nobody_is_sent_to_another_host(anonymous: httpx.Client) -> None:
    answer = anonymous.get("/healthz/", headers={"Host": "elsewhere.example"})
    problem_of(answer, 404, "not-found")
    assert "location" not in answer.headers


def test_no_other_origin_may_call(anonymous: httpx.Client, data_owner: User) -> None:
    foreign = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    asked = anonymous.options("/datasets", headers=foreign)
    assert asked.status_code == 405
    for answer in (asked, data_owner.get("/me", headers=foreign)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_documentation_runs_its_own_script_and_no_other(anonymous: httpx.Client) -> None:
    page = anonymous.get("/docs")
    policy = page.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert "connect-src 'self'" in policy
    assert "default-src 'none'" in policy


class TestJson:
    """Bodies that would fill the stack."""

    @pytest.mark.parametrize("depth", [MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1, 100_000])
    @pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
    def test_deep_ones_are_refused(
        self, data_owner: User, depth: int, opened: str, closed: str
    ) -> None:
        body = opened * depth + "0" + closed * depth
        answer = data_owner.http.post(
            "/datasets", content=body, headers={"Content-Type": "application/json"}
        )
        problem = problem_of(answer, 422, "invalid")
        too_deep = f"At most {MAX_JSON_DEPTH} levels" in problem["detail"]
        assert too_deep == (depth > MAX_JSON_DEPTH)

    def test_an_answer_does_not_grow_with_what_is_wrong(self, data_owner: User) -> None:
        body = {"name": "x"} | {f"more {number}": number for number in range(5_000)}
        asked = data_owner.post("/datasets", body)
        assert len(problem_of(asked, 422, "invalid")["errors"]) == MAX_ERRORS

    def test_brackets_in_strings_and_side_by_side_are_not_deep(self, data_owner: User) -> None:
        name = '[{"\\' * 40
        created = data_owner.post("/datasets", {"name": name})
        assert created.status_code == 201
        assert created.json()["name"] == name
        asked = data_owner.post("/datasets", {"name": "x", "more": [[]] * 100})
        problem_of(asked, 422, "invalid")
        assert asked.json()["errors"][0]["pointer"] == "/more"
