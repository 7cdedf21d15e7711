"""Removal requests over HTTP: what is accepted, what is refused with which words, and what never happens twice."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.api.conftest import Past, User, problem_of

from expunge.registry.database import Sessions
from expunge.registry.tables import IdempotencyKey, Job, LogRow, Request
from expunge.unlearning.catalog import METHODS

UNKNOWN_DATASET = "dst_" + "0" * 32
UNKNOWN_MODEL = "mdl_" + "0" * 32
OVERFULL = 2**20 + 1
JSON = {"Content-Type": "application/json"}


def timeless(request: dict[str, Any]) -> dict[str, Any]:
    """The request without what grows from second to second."""
    return request | {"exposure_seconds": None}


@dataclass
class Scene:
    """A trained model with data of two owners, and a counter of everything that a request adds."""

    model: str
    mine: str
    theirs: str
    sessions: Sessions

    def ask(self, **changes: Any) -> dict[str, Any]:
        return {"model_id": self.model, "dataset_ids": [self.mine]} | changes

    def rows(self) -> list[int | None]:
        with self.sessions() as session:
            return [
                session.scalar(select(func.count()).select_from(table))
                for table in (Request, Job, LogRow, IdempotencyKey)
            ]


@pytest.fixture
def scene(
    past: Past,
    model_owner: User,
    data_owner: User,
    other_owner: User,
    session_factory: Sessions,
) -> Scene:
    own = past.sealed(model_owner)
    mine = past.granted(data_owner, model_owner)
    theirs = past.granted(other_owner, model_owner)
    model = model_owner.model(policy={"batch_window_seconds": 600})
    past.trained(model_owner, model, [own, mine, theirs])
    return Scene(model, mine, theirs, session_factory)


@pytest.fixture
def unchanged(scene: Scene) -> Callable[[], None]:
    before = scene.rows()

    def check() -> None:
        assert scene.rows() == before

    return check


def test_a_request_is_durable_approved_and_queued_when_it_is_answered(
    data_owner: User, scene: Scene
) -> None:
    answer = data_owner.post("/requests", scene.ask(params={"epochs": 3}))
    assert answer.status_code == 202
    request = answer.json()
    assert answer.headers["location"] == f"/requests/{request['id']}"
    assert request["state"] == "queued"
    assert request["params"]["epochs"] == 3
    assert request["params"]["alpha"] == 1.0
    assert request["result"] is None
    assert timeless(data_owner.get(answer.headers["location"]).json()) == timeless(request)
    assert timeless(request) in map(timeless, data_owner.get("/requests").json()["items"])


def test_an_unknown_method_lists_the_known_ones(
    data_owner: User, scene: Scene, unchanged: Callable[[], None]
) -> None:
    answer = data_owner.post("/requests", scene.ask(method="burn"))
    problem = problem_of(answer, 422, "unknown-method")
    assert problem["allowed"] == sorted(METHODS)
    unchanged()


@pytest.mark.parametrize(
    ("params", "pointer", "allowed"),
    [
        ({"epochs": 0}, "/params/epochs", {"minimum": 1, "maximum": 10_000}),
        ({"epochs": 10_001}, "/params/epochs", {"minimum": 1, "maximum": 10_000}),
        ({"epochs": "5"}, "/params/epochs", {"type": "integer"}),
        ({"epochs": True}, "/params/epochs", {"type": "integer"}),
        ({"beta": -0.1}, "/params/beta", {"minimum": 0, "maximum": 100}),
        ({"learning_rate": 0}, "/params/learning_rate", {"exclusiveMinimum": 0, "maximum": 10}),
        ({"learning_rate": None}, "/params/learning_rate", {"type": "number"}),
        ({"protocol": "other"}, "/params/protocol", {"enum": ["corrected", "released"]}),
    ],
)
def test_a_parameter_outside_its_bounds_names_them(
    *,
    data_owner: User,
    scene: Scene,
    unchanged: Callable[[], None],
    params: dict[str, Any],
    pointer: str,
    allowed: dict[str, Any],
) -> None:
    problem = problem_of(
        data_owner.post("/requests", scene.ask(params=params)), 422, "invalid-parameters"
    )
    (error,) = problem["errors"]
    assert error["pointer"] == pointer
    assert error["message"]
    assert error["allowed"].items() >= allowed.items()
    unchanged()


def test_a_number_that_is_none_is_refused(
    data_owner: User, scene: Scene, unchanged: Callable[[], None]
) -> None:
    body = '{"model_id": "%s", "dataset_ids": ["%s"], "params": {"beta": %s}}'
    for number in ("NaN", "Infinity", "1e999"):
        answer = data_owner.http.post("/requests", content=body % (scene.model, scene.mine, number))
        assert answer.status_code == 422, answer.text
    unchanged()


def test_an_unknown_parameter_lists_the_known_ones(
    data_owner: User, scene: Scene, unchanged: Callable[[], None]
) -> None:
    answer = data_owner.post("/requests", scene.ask(params={"epoch": 3}))
    (error,) = problem_of(answer, 422, "invalid-parameters")["errors"]
    assert error["pointer"] == "/params/epoch"
    assert {"alpha", "beta", "epochs"} <= set(error["allowed"])
    unchanged()


def test_a_data_set_of_another_owner_is_not_found(
    data_owner: User, scene: Scene, unchanged: Callable[[], None]
) -> None:
    answer = data_owner.post("/requests", scene.ask(dataset_ids=[scene.mine, scene.theirs]))
    assert scene.theirs in problem_of(answer, 404, "not-found")["detail"]
    unchanged()


def test_an_unknown_data_set_is_not_found(
    data_owner: User, scene: Scene, unchanged: Callable[[], None]
) -> None:
    answer = data_owner.post("/requests", scene.ask(dataset_ids=[UNKNOWN_DATASET]))
    assert UNKNOWN_DATASET in problem_of(answer, 404, "not-found")["detail"]
    unchanged()


def test_an_unknown_model_and_one_without_own_data_look_the_same(
    data_owner: User, past: Past, scene: Scene, model_owner: User, unchanged: Callable[[], None]
) -> None:
    foreign = model_owner.model()
    for model in (UNKNOWN_MODEL, foreign):
        answer = data_owner.post("/requests", scene.ask(model_id=model))
        detail = problem_of(answer, 404, "not-found")["detail"]
        assert detail == f"There is no model {model} that you can see."


def test_an_unsealed_data_set_is_refused(data_owner: User, scene: Scene) -> None:
    unsealed = data_owner.open_dataset()
    before = scene.rows()
    answer = data_owner.post("/requests", scene.ask(dataset_ids=[unsealed]))
    assert "is open; seal it first" in problem_of(answer, 409, "dataset-not-sealed")["detail"]
    assert scene.rows() == before


def test_a_data_set_outside_the_training_data_is_refused(
    data_owner: User, past: Past, scene: Scene
) -> None:
    unused = past.sealed(data_owner)
    before = scene.rows()
    answer = data_owner.post("/requests", scene.ask(dataset_ids=[scene.mine, unused]))
    problem = problem_of(answer, 422, "not-in-training-data")
    assert problem["dataset_ids"] == [unused]
    assert unused in problem["detail"]
    assert scene.rows() == before


def test_an_empty_list_is_refused(
    data_owner: User, scene: Scene, unchanged: Callable[[], None]
) -> None:
    answer = data_owner.post("/requests", scene.ask(dataset_ids=[]))
    assert "name at least one" in problem_of(answer, 422, "invalid")["detail"]
    unchanged()


def test_doubles_are_refused(data_owner: User, scene: Scene, unchanged: Callable[[], None]) -> None:
    answer = data_owner.post("/requests", scene.ask(dataset_ids=[scene.mine, scene.mine]))
    assert "twice" in problem_of(answer, 422, "invalid")["detail"]
    unchanged()


def test_what_is_being_forgotten_is_not_asked_again(data_owner: User, scene: Scene) -> None:
    data_owner.post("/requests", scene.ask())
    before = scene.rows()
    problem = problem_of(data_owner.post("/requests", scene.ask()), 409, "already-forgotten")
    assert problem["dataset_ids"] == [scene.mine]
    assert scene.rows() == before


def test_what_was_forgotten_is_not_trained_on_again(
    data_owner: User, model_owner: User, past: Past
) -> None:
    own, data = past.sealed(model_owner), past.granted(data_owner, model_owner)
    model = model_owner.model()
    past.trained(model_owner, model, [own, data])
    request = data_owner.post("/requests", {"model_id": model, "dataset_ids": [data]}).json()
    past.unlearned(request["id"])
    answer = model_owner.post(f"/models/{model}/pretrain", {"dataset_ids": [own, data]})
    assert data in problem_of(answer, 409, "already-forgotten")["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/model_id"),
        ({"model_id": "mdl_1", "dataset_ids": []}, "/model_id"),
        ({"model_id": UNKNOWN_MODEL, "dataset_ids": "dst"}, "/dataset_ids"),
        ({"model_id": UNKNOWN_MODEL, "dataset_ids": ["dst_\u0000"]}, "/dataset_ids/0"),
        ({"model_id": UNKNOWN_MODEL, "dataset_ids": [], "force": True}, "/force"),
        ({"model_id": UNKNOWN_MODEL, "dataset_ids": [], "params": []}, "/params"),
    ],
)
def test_a_body_of_another_shape_says_where(
    data_owner: User, body: dict[str, Any], pointer: str
) -> None:
    problem = problem_of(data_owner.post("/requests", body), 422, "invalid")
    assert pointer in [each["pointer"] for each in problem["errors"]]


DEEP_IN_UTF_16 = ('{"a": "\\"", "b": ' + "[" * 5_000).encode("utf-16")


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, DEEP_IN_UTF_16], ids=["none", "deep", "deep in UTF-16"]
)
def test_no_body_and_a_deep_one_are_refused(data_owner: User, content: bytes) -> None:
    answer = data_owner.http.post("/requests", content=content, headers=JSON)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_json_body_without_end_is_refused(data_owner: User) -> None:
    answer = data_owner.http.post("/requests", content=b'"' + b"x" * OVERFULL, headers=JSON)
    problem_of(answer, 413, "content-too-large")


@pytest.mark.parametrize(
    "body",
    [
        b'{"method": "\xc3("}',
        b'{"method": 1' + b"0" * 5_000 + b"}",
        b"{",
        b'{"a": 1',
    ],
    ids=["not UTF-8", "a number of 5,000 digits", "begun", "broken off"],
)
def test_a_body_that_is_no_json_is_refused(data_owner: User, body: bytes) -> None:
    answer = data_owner.http.post("/requests", content=body, headers=JSON)
    problem = problem_of(answer, 422, "invalid")
    assert problem["errors"] == [{"in": "body", "pointer": "", "message": "the body is not JSON"}]


class TestIdempotency:
    """The same key and body make one request, however often and at once they are sent."""

    def test_a_replay_answers_with_the_same_request(self, data_owner: User, scene: Scene) -> None:
        key = {"Idempotency-Key": f"replay-{scene.mine}"}
        first = data_owner.post("/requests", scene.ask(), headers=key)
        before = scene.rows()
        again = data_owner.post("/requests", scene.ask(), headers=key)
        assert again.status_code == 202
        assert timeless(again.json()) == timeless(first.json())
        assert scene.rows() == before

    def test_another_body_is_refused(self, data_owner: User, scene: Scene) -> None:
        key = {"Idempotency-Key": f"other-{scene.mine}"}
        data_owner.post("/requests", scene.ask(), headers=key)
        before = scene.rows()
        answer = data_owner.post("/requests", scene.ask(method="fine_tune"), headers=key)
        problem_of(answer, 422, "idempotency-key-reused")
        assert scene.rows() == before

    def test_a_refused_call_does_not_use_the_key_up(self, data_owner: User, scene: Scene) -> None:
        key = {"Idempotency-Key": f"refused-{scene.mine}"}
        assert data_owner.post("/requests", scene.ask(method="burn"), headers=key).is_error
        assert data_owner.post("/requests", scene.ask(), headers=key).status_code == 202

    def test_keys_of_two_parties_are_two_keys(
        self, data_owner: User, other_owner: User, scene: Scene
    ) -> None:
        key = {"Idempotency-Key": f"shared-{scene.mine}"}
        mine = data_owner.post("/requests", scene.ask(), headers=key)
        theirs = other_owner.post("/requests", scene.ask(dataset_ids=[scene.theirs]), headers=key)
        assert (mine.status_code, theirs.status_code) == (202, 202)
        assert mine.json()["id"] != theirs.json()["id"]

    def test_ten_duplicates_at_once_make_one_request(self, data_owner: User, scene: Scene) -> None:
        key = {"Idempotency-Key": f"ten-{scene.mine}"}
        before = scene.rows()
        with ThreadPoolExecutor(10) as pool:
            answers = list(
                pool.map(
                    lambda _: data_owner.post("/requests", scene.ask(), headers=key), range(10)
                )
            )
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        added = [(now or 0) - (then or 0) for now, then in zip(scene.rows(), before, strict=True)]
        assert added[0] == added[1] == added[3] == 1

    def test_without_a_key_ten_at_once_still_make_one(self, data_owner: User, scene: Scene) -> None:
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: data_owner.post("/requests", scene.ask()), range(10)))
        assert sorted(answer.status_code for answer in answers) == [202] + [409] * 9

    @pytest.mark.parametrize("key", ["", "a b", "x" * 256])
    def test_a_key_that_is_none_is_refused(self, data_owner: User, scene: Scene, key: str) -> None:
        answer = data_owner.post("/requests", scene.ask(), headers={"Idempotency-Key": key})
        problem_of(answer, 422, "invalid")


class TestBatching:
    """One job serves the requests of a window; its owners learn nothing of each other."""

    def test_requests_of_one_window_share_a_job(
        self, data_owner: User, other_owner: User, model_owner: User, scene: Scene, past: Past
    ) -> None:
        mine = data_owner.post("/requests", scene.ask()).json()
        theirs = other_owner.post("/requests", scene.ask(dataset_ids=[scene.theirs])).json()
        assert past.job_of(mine["id"]) == past.job_of(theirs["id"])
        job = model_owner.get(f"/jobs/{past.job_of(mine['id'])}").json()
        assert job["request_ids"] == sorted([mine["id"], theirs["id"]])
        assert job["kind"] == "unlearn"
        assert job["method"] == "alignment_calibration"

    def test_other_parameters_make_another_job(
        self, data_owner: User, other_owner: User, scene: Scene, past: Past
    ) -> None:
        mine = data_owner.post("/requests", scene.ask()).json()
        theirs = other_owner.post(
            "/requests", scene.ask(dataset_ids=[scene.theirs], params={"epochs": 7})
        ).json()
        assert past.job_of(mine["id"]) != past.job_of(theirs["id"])

    def test_a_request_shows_nothing_of_the_other_owner(
        self, data_owner: User, other_owner: User, scene: Scene
    ) -> None:
        mine = data_owner.post("/requests", scene.ask())
        theirs = other_owner.post("/requests", scene.ask(dataset_ids=[scene.theirs])).json()
        seen = data_owner.get(mine.headers["location"]).text + data_owner.get("/requests").text
        for hidden in (scene.theirs, theirs["id"], other_owner.id, "job_"):
            assert hidden not in seen

    def test_the_model_owner_sees_both(
        self, data_owner: User, other_owner: User, model_owner: User, scene: Scene
    ) -> None:
        made = [
            data_owner.post("/requests", scene.ask()).json()["id"],
            other_owner.post("/requests", scene.ask(dataset_ids=[scene.theirs])).json()["id"],
        ]
        seen = [each["id"] for each in model_owner.get("/requests").json()["items"]]
        assert set(made) <= set(seen)


def test_lists_come_in_pages_newest_first(data_owner: User, past: Past) -> None:
    made = [past.sealed(data_owner) for _ in range(5)]
    first = data_owner.get("/datasets", params={"limit": 2}).json()
    rest = data_owner.get("/datasets", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [each["id"] for each in first["items"] + rest["items"]] == made[::-1]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 201},
        {"limit": "x"},
        {"cursor": "%"},
        {"cursor": "é"},
        {"cursor": "AA"},
    ],
)
def test_a_page_that_is_none_is_refused(data_owner: User, query: dict[str, Any]) -> None:
    problem_of(data_owner.get("/datasets", params=query), 422, "invalid")


@pytest.mark.parametrize("name", ["", "x" * 201, "a\u0000b", "a\nb", "\ud800"])
def test_a_name_that_is_none_is_refused(data_owner: User, name: str) -> None:
    answer = data_owner.http.post(
        "/datasets", content=json.dumps({"name": name}).encode("ascii"), headers=JSON
    )
    problem = problem_of(answer, 422, "invalid")
    assert problem["errors"][0]["pointer"] == "/name"


def test_two_of_one_name_at_once_make_one(data_owner: User) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: data_owner.post("/datasets", {"name": "the one"}), range(8))
        )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    for answer in answers:
        if answer.status_code == 409:
            problem_of(answer, 409, "conflict")
