"""Comparisons over HTTP: what a model's owner may ask, what is refused with which words, what comes back."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.api.conftest import FILES, Past, User, problem_of

from expunge.registry import jobs
from expunge.registry.database import Sessions
from expunge.registry.tables import Comparison, IdempotencyKey, Job, LogRow
from expunge.unlearning.candidates import MAX_CANDIDATES
from expunge.unlearning.catalog import METHODS

UNKNOWN_DATASET = "dst_" + "0" * 32
UNKNOWN_MODEL = "mdl_" + "0" * 32


@dataclass
class Scene:
    """A trained model with data of its owner and two others, control images, and a row counter."""

    model: str
    own: str
    mine: str
    theirs: str
    control: str
    head: str
    sessions: Sessions

    def ask(self, **changes: Any) -> dict[str, Any]:
        body = {
            "model_id": self.model,
            "dataset_ids": [self.mine],
            "methods": [{"method": "fine_tune"}],
        }
        return {name: value for name, value in (body | changes).items() if value is not None}

    def rows(self) -> list[int | None]:
        with self.sessions() as session:
            return [
                session.scalar(select(func.count()).select_from(table))
                for table in (Comparison, Job, LogRow, IdempotencyKey)
            ]


@pytest.fixture
def scene(
    past: Past,
    model_owner: User,
    data_owner: User,
    other_owner: User,
    session_factory: Sessions,
) -> Scene:
    own, control = past.sealed(model_owner), past.sealed(model_owner)
    mine = past.granted(data_owner, model_owner)
    theirs = past.granted(other_owner, model_owner)
    model = model_owner.model(control_dataset_id=control)
    head = past.trained(model_owner, model, [own, mine, theirs])
    return Scene(model, own, mine, theirs, control, head, session_factory)


Refused = Callable[..., dict[str, Any]]


@pytest.fixture
def refused(scene: Scene, model_owner: User) -> Refused:
    """Sends a body, checks the problem, and that nothing was written."""

    def check(status: int, slug: str, **changes: Any) -> dict[str, Any]:
        before = scene.rows()
        problem = problem_of(model_owner.post("/comparisons", scene.ask(**changes)), status, slug)
        assert scene.rows() == before
        return problem

    return check


def test_a_comparison_is_queued_with_every_parameter_filled_in(
    model_owner: User, scene: Scene
) -> None:
    methods = [
        {"method": "alignment_calibration", "params": {"epochs": 2}, "grid": {"beta": [0.0, 8.0]}},
        {"method": "fine_tune"},
    ]
    body = scene.ask(
        methods=methods,
        with_retrain=True,
        retrain_params={"epochs": 3},
        seeds=[0, 1],
        relearn=True,
        keep_best=True,
    )
    answer = model_owner.post("/comparisons", body)
    assert answer.status_code == 202, answer.text
    found = answer.json()
    assert answer.headers["location"] == f"/comparisons/{found['id']}"
    assert (found["state"], found["checkpoint_id"]) == ("queued", scene.head)
    assert (found["dataset_ids"], found["control_dataset_id"]) == ([scene.mine], scene.control)
    settings = found["settings"]
    assert [each["method"] for each in settings["candidates"]] == [
        "alignment_calibration",
        "alignment_calibration",
        "fine_tune",
    ]
    assert [each["params"].get("beta") for each in settings["candidates"]] == [0.0, 8.0, None]
    assert settings["candidates"][0]["params"]["epochs"] == 2
    assert len({each["label"] for each in settings["candidates"]}) == 3
    assert settings["retrain_params"]["epochs"] == 3
    assert settings["retrain_params"]["schedule"] == "cosine"
    assert (settings["seeds"], settings["search"]) == ([0, 1], None)
    assert settings["relearn"] is settings["keep_best"] is True
    assert found["result"] is found["files"] is found["progress"] is None
    assert model_owner.get(answer.headers["location"]).json() == found
    listed = model_owner.get("/comparisons").json()["items"]
    assert [each["id"] for each in listed][:1] == [found["id"]]
    assert "result" not in listed[0]


def test_a_search_takes_the_place_of_settings(model_owner: User, scene: Scene) -> None:
    body = scene.ask(
        methods=None, search={"method": "fine_tune", "params": {"epochs": 2}, "trials": 3}
    )
    settings = model_owner.post("/comparisons", body).json()["settings"]
    rates = {"low": 0.003, "high": 0.03, "log": True}
    assert settings["search"] == {
        "method": "fine_tune",
        "trials": 3,
        "params": {"epochs": 2},
        "ranges": {"learning_rate": rates},
        "objective": "proxy",
    }
    assert settings["candidates"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": None},
        {"search": {"method": "fine_tune"}},
        {"methods": []},
        {"seeds": []},
        {"seeds": list(range(11))},
        {"seeds": [-1]},
        {"seeds": [1.5]},
        {"methods": [{"method": "fine_tune", "grid": {"epochs": []}}]},
        {"methods": [{"method": "fine_tune"}, {"method": "fine_tune"}]},
        {"methods": [{"method": "retrain"}]},
        {"methods": [{"method": "fine_tune", "how": "fast"}]},
        {"methods": None, "search": {"method": "fine_tune", "trials": 0}},
        {"methods": None, "search": {"method": "fine_tune", "trials": 65}},
        {"methods": None, "search": {"method": "fine_tune", "objective": "luck"}},
        {"protocol": "other"},
        {"dataset_ids": ["dst_1"]},
        {"dataset_ids": []},
        {"extra": 1},
    ],
)
def test_a_body_of_another_shape_is_refused(refused: Refused, changes: dict[str, Any]) -> None:
    refused(422, "invalid", **changes)


def test_settings_and_a_search_at_once_or_neither_are_refused_in_words(refused: Refused) -> None:
    problem = refused(422, "invalid", methods=None)
    assert problem["detail"] == "body: give either methods or search"


def test_an_unknown_method_lists_the_known_ones_and_says_where(refused: Refused) -> None:
    methods = [{"method": "fine_tune"}, {"method": "burn"}]
    problem = refused(422, "unknown-method", methods=methods)
    assert problem["allowed"] == sorted(METHODS)
    assert problem["errors"][0]["pointer"] == "/methods/1/method"


def test_an_empty_grid_of_an_unknown_method_is_refused_like_any_other(refused: Refused) -> None:
    for method in ("fine_tune", "burn"):
        problem = refused(422, "invalid", methods=[{"method": method, "grid": {"epochs": []}}])
        assert problem["errors"][0]["pointer"] == "/methods/0/grid/epochs"


@pytest.mark.parametrize(
    ("spec", "pointer", "allowed"),
    [
        ({"params": {"epochs": 0}}, "/methods/1/params/epochs", {"minimum": 1}),
        ({"grid": {"beta": [1.0, -1.0]}}, "/methods/1/grid/beta/1", {"minimum": 0, "maximum": 100}),
        (
            {"grid": {"beta": [1.0]}, "params": {"alpha": 101}},
            "/methods/1/params/alpha",
            {"maximum": 100},
        ),
    ],
)
def test_a_parameter_out_of_bounds_names_them_and_its_place(
    refused: Refused, spec: dict[str, Any], pointer: str, allowed: dict[str, Any]
) -> None:
    methods = [{"method": "fine_tune"}, {"method": "alignment_calibration"} | spec]
    problem = refused(422, "invalid-parameters", methods=methods)
    assert problem["errors"][0]["pointer"] == pointer
    assert problem["errors"][0]["allowed"].items() >= allowed.items()


def test_a_parameter_of_retrain_out_of_bounds_names_its_place(refused: Refused) -> None:
    problem = refused(
        422, "invalid-parameters", with_retrain=True, retrain_params={"learning_rate": 0}
    )
    assert problem["errors"][0]["pointer"] == "/retrain_params/learning_rate"


def test_a_value_both_fixed_and_swept_is_refused(refused: Refused) -> None:
    spec = {"method": "fine_tune", "params": {"epochs": 1}, "grid": {"epochs": [1, 2]}}
    problem = refused(422, "invalid", methods=[spec])
    assert problem["errors"][0]["pointer"] == "/methods/0/grid/epochs"


def test_too_many_settings_are_refused_before_they_are_made(refused: Refused) -> None:
    values = [number / 1000 for number in range(1, 1000)]
    grid = dict.fromkeys(("alpha", "beta", "gamma", "learning_rate", "momentum"), values)
    problem = refused(422, "invalid", methods=[{"method": "alignment_calibration", "grid": grid}])
    assert f"at most {MAX_CANDIDATES}" in problem["detail"]
    assert str(len(values) ** len(grid)) in problem["detail"]


def test_seeds_twice_are_refused(refused: Refused) -> None:
    problem = refused(422, "invalid", seeds=[1, 2, 1])
    assert problem["errors"][0]["pointer"] == "/seeds"


def test_parameters_of_a_retrain_that_is_not_asked_for_are_refused(refused: Refused) -> None:
    problem = refused(422, "invalid", retrain_params={"epochs": 3})
    assert "with_retrain is false" in problem["detail"]


def test_a_search_against_retrain_needs_retrain_and_retrain_such_a_search(
    refused: Refused,
) -> None:
    for objective, with_retrain in (("retrain", False), ("proxy", True)):
        search = {"method": "fine_tune", "objective": objective}
        problem = refused(422, "invalid", methods=None, search=search, with_retrain=with_retrain)
        assert problem["errors"][0]["pointer"] == "/search/objective"


def test_a_search_in_ranges_that_make_no_sense_says_where(refused: Refused) -> None:
    for search, slug, pointer in (
        ({"method": "burn"}, "unknown-method", "/search/method"),
        ({"method": "retrain"}, "invalid", "/search/method"),
        (
            {"method": "fine_tune", "ranges": {"momentum": {"low": 0, "high": 2}}},
            "invalid-parameters",
            "/search/ranges/momentum",
        ),
        (
            {"method": "fine_tune", "ranges": {"speed": {"low": 0, "high": 2}}},
            "invalid-parameters",
            "/search/ranges/speed",
        ),
        (
            {"method": "fine_tune", "ranges": {"momentum": {"low": 1, "high": 0}}},
            "invalid",
            "/search/ranges/momentum",
        ),
    ):
        problem = refused(422, slug, methods=None, search=search)
        assert problem["errors"][0]["pointer"] == pointer


def test_data_sets_named_twice_or_not_at_all_are_refused(refused: Refused, scene: Scene) -> None:
    assert "twice" in refused(422, "invalid", dataset_ids=[scene.mine, scene.mine])["detail"]


def test_a_data_set_outside_the_training_data_is_refused(
    refused: Refused, past: Past, model_owner: User
) -> None:
    unused = past.sealed(model_owner)
    problem = refused(422, "not-in-training-data", dataset_ids=[unused])
    assert problem["dataset_ids"] == [unused]
    refused(422, "not-in-training-data", dataset_ids=[UNKNOWN_DATASET])


def test_forgetting_everything_is_refused(refused: Refused, scene: Scene) -> None:
    problem = refused(409, "conflict", dataset_ids=[scene.own, scene.mine, scene.theirs])
    assert "nothing to train on" in problem["detail"]


def test_a_model_without_a_control_data_set_is_refused(
    past: Past, model_owner: User, scene: Scene
) -> None:
    model, data = model_owner.model(), [past.sealed(model_owner) for _ in range(2)]
    past.trained(model_owner, model, data)
    body = scene.ask(model_id=model, dataset_ids=data[:1])
    detail = problem_of(model_owner.post("/comparisons", body), 409, "conflict")["detail"]
    assert "TA and the attacks need images never trained on" in detail


def test_a_model_without_a_checkpoint_is_refused(
    past: Past, model_owner: User, scene: Scene
) -> None:
    model = model_owner.model(control_dataset_id=past.sealed(model_owner))
    answer = model_owner.post("/comparisons", scene.ask(model_id=model))
    assert "no checkpoint yet" in problem_of(answer, 409, "conflict")["detail"]


def test_what_is_asked_to_be_forgotten_may_be_compared_but_not_retained(
    data_owner: User, model_owner: User, scene: Scene, past: Past
) -> None:
    request = data_owner.post(
        "/requests", {"model_id": scene.model, "dataset_ids": [scene.mine]}
    ).json()
    assert model_owner.post("/comparisons", scene.ask()).status_code == 202
    without = model_owner.post("/comparisons", scene.ask(dataset_ids=[scene.theirs]))
    problem = problem_of(without, 409, "conflict")
    assert problem["dataset_ids"] == [scene.mine]
    assert "Name it in dataset_ids as well" in problem["detail"]
    past.unlearned(request["id"])
    again = problem_of(model_owner.post("/comparisons", scene.ask()), 409, "already-forgotten")
    assert again["dataset_ids"] == [scene.mine]
    assert (
        model_owner.post("/comparisons", scene.ask(dataset_ids=[scene.theirs])).status_code == 202
    )


def test_data_whose_grant_was_withdrawn_is_not_trained_on(
    data_owner: User, model_owner: User, scene: Scene
) -> None:
    path = f"/datasets/{scene.mine}/grants/{model_owner.id}"
    assert data_owner.http.delete(path).status_code == 204
    answer = model_owner.post("/comparisons", scene.ask(dataset_ids=[scene.theirs]))
    assert problem_of(answer, 409, "conflict")["dataset_ids"] == [scene.mine]
    assert model_owner.post("/comparisons", scene.ask()).status_code == 202


def test_an_unknown_model_and_that_of_another_look_the_same(
    other_model_owner: User, scene: Scene
) -> None:
    for model in (UNKNOWN_MODEL, scene.model):
        answer = other_model_owner.post("/comparisons", scene.ask(model_id=model))
        detail = problem_of(answer, 404, "not-found")["detail"]
        assert detail == f"There is no model {model} that you can see."


def test_a_data_owner_may_not_compare_and_sees_nothing_of_it(
    data_owner: User, model_owner: User, scene: Scene
) -> None:
    made = model_owner.post("/comparisons", scene.ask()).json()
    problem_of(data_owner.post("/comparisons", scene.ask()), 403, "forbidden")
    problem_of(data_owner.get(f"/comparisons/{made['id']}"), 403, "forbidden")


def test_a_comparison_is_no_job_and_does_not_hold_up_requests(
    data_owner: User, model_owner: User, scene: Scene, past: Past
) -> None:
    made = model_owner.post("/comparisons", scene.ask()).json()
    with scene.sessions() as session:
        job_id = session.get_one(Comparison, made["id"]).job_id
    past.claimed(job_id)
    assert job_id not in model_owner.get("/jobs", params={"limit": 200}).text
    request = data_owner.post(
        "/requests", {"model_id": scene.model, "dataset_ids": [scene.mine]}
    ).json()
    past.unlearned(request["id"])
    assert data_owner.get(f"/requests/{request['id']}").json()["state"] == "completed"


def test_a_running_comparison_tells_how_far_it_is(
    model_owner: User, scene: Scene, past: Past
) -> None:
    made = model_owner.post("/comparisons", scene.ask()).json()
    with scene.sessions() as session:
        lease = past.claimed(session.get_one(Comparison, made["id"]).job_id)
    progress = {
        "done": 1,
        "total": 3,
        "label": "fine_tune",
        "seed": 0,
        "training": None,
        "eta_seconds": 2.5,
    }
    with scene.sessions.begin() as session:
        jobs.heartbeat(session, lease, lease_seconds=60, progress=progress)
    found = model_owner.get(f"/comparisons/{made['id']}").json()
    assert (found["state"], found["progress"]) == ("running", progress)
    with scene.sessions.begin() as session:
        jobs.fail(session, lease, jobs.Failure("exception", "it broke", "in the middle"))
    found = model_owner.get(f"/comparisons/{made['id']}").json()
    assert (found["state"], found["progress"]) == ("failed", None)
    assert found["reason"] == "it broke: in the middle", "the model's owner is told everything"


def test_a_finished_comparison_has_its_result_and_files(
    model_owner: User, scene: Scene, past: Past
) -> None:
    made = model_owner.post("/comparisons", scene.ask()).json()
    address = f"/comparisons/{made['id']}"
    for name in FILES:
        problem_of(model_owner.get(f"{address}/{name}"), 404, "not-found")
    past.compared(made["id"], recommended=None, rows=[])
    found = model_owner.get(address).json()
    assert (found["state"], found["result"]) == ("succeeded", {"recommended": None, "rows": []})
    assert found["files"] == {name: f"{address}/{name}" for name in FILES}
    types = {name: model_owner.get(found["files"][name]) for name in FILES}
    for name, answer in types.items():
        assert answer.text == f"{name} of {made['id']}"
    assert [types[name].headers["content-type"].partition(";")[0] for name in FILES] == [
        "application/json",
        "text/csv",
        "text/markdown",
        "image/png",
        "text/csv",
    ]
    problem_of(model_owner.get(f"{address}/table.xlsx"), 404, "not-found")


def test_waiting_answers_with_the_result(model_owner: User, scene: Scene, past: Past) -> None:
    def finish() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with scene.sessions() as session:
                row = session.scalar(select(Comparison).where(Comparison.model_id == scene.model))
            if row is not None:
                past.compared(row.id, recommended=None)
                return
            time.sleep(0.02)

    worker = threading.Thread(target=finish)
    worker.start()
    answer = model_owner.post("/comparisons", scene.ask(), headers={"Prefer": "wait=20"})
    worker.join()
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=20"


def test_repeating_a_call_with_its_key_makes_one_comparison(
    model_owner: User, scene: Scene
) -> None:
    key = {"Idempotency-Key": f"compare-{scene.mine}"}
    first = model_owner.post("/comparisons", scene.ask(), headers=key)
    before = scene.rows()
    again = model_owner.post("/comparisons", scene.ask(), headers=key)
    assert (again.status_code, again.json()) == (202, first.json())
    other = model_owner.post("/comparisons", scene.ask(seeds=[7]), headers=key)
    problem_of(other, 422, "idempotency-key-reused")
    assert scene.rows() == before
