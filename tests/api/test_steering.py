"""What a model's owner does to jobs over HTTP: cancel, change their turn, read their log. No worker runs here."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from tests.api.conftest import Past, User, problem_of

from expunge.registry import checkpoints, comparisons, jobs
from expunge.registry.tables import Comparison
from expunge.registry.transitions import LeaseLost

WAIT_SECONDS = 30
CRASH = jobs.Failure("out-of-memory", "it ran out of memory", "CUDA out of memory")


@dataclass(frozen=True)
class Scene:
    """A trained model with a queued removal of two owners."""

    past: Past
    model_owner: User
    owners: tuple[User, User]
    requests: tuple[str, str]
    model: str
    own: str
    head: str
    job: str

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = self.model_owner.get(f"/jobs/{self.job}").json()
        return found

    def states(self) -> list[tuple[str, str | None]]:
        """State and reason of both requests, as their owners read them."""
        found = [
            owner.get(f"/requests/{request}").json()
            for owner, request in zip(self.owners, self.requests, strict=True)
        ]
        return [(each["state"], each["reason"]) for each in found]

    def ask_again(self, comparison_id: str) -> dict[str, Any]:
        """The body of a comparison like that one."""
        found = self.model_owner.get(f"/comparisons/{comparison_id}").json()
        asked = {name: found[name] for name in ("model_id", "dataset_ids")}
        return asked | {"methods": [{"method": "fine_tune"}]}

    def log(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.model_owner.get(f"/jobs/{self.job}/log").json()["items"]
        return items


@pytest.fixture
def scene(past: Past, model_owner: User, data_owner: User, other_owner: User) -> Scene:
    own = past.sealed(model_owner), past.sealed(model_owner)
    owners = data_owner, other_owner
    data = [past.granted(owner, model_owner) for owner in owners]
    model = model_owner.model(control_dataset_id=past.sealed(model_owner))
    head = past.trained(model_owner, model, [*own, *data])
    asked = [
        owner.post("/requests", {"model_id": model, "dataset_ids": [each]}).json()["id"]
        for owner, each in zip(owners, data, strict=True)
    ]
    job = past.job_of(asked[0])
    assert past.job_of(asked[1]) == job
    return Scene(past, model_owner, owners, (asked[0], asked[1]), model, own[0], head, job)


class TestCancel:
    """Ends the job, its requests and the right of its attempt in one moment."""

    def test_a_waiting_job(self, scene: Scene) -> None:
        answer = scene.model_owner.post(f"/jobs/{scene.job}/cancel", {"reason": "wrong method"})
        assert answer.status_code == 200, answer.text
        told = "the model's owner cancelled the job: wrong method"
        assert (answer.json()["state"], answer.json()["reason"]) == ("cancelled", told)
        assert scene.states() == [("cancelled", told)] * 2

    def test_a_running_attempt_records_nothing_any_more(self, scene: Scene) -> None:
        lease = scene.past.claimed(scene.job)
        answer = scene.model_owner.post(f"/jobs/{scene.job}/cancel")
        assert answer.json()["state"] == "cancelled"
        assert answer.json()["finished_at"] is not None
        assert answer.json()["seconds_used"] > 0
        with scene.past.sessions.begin() as session, pytest.raises(LeaseLost):
            checkpoints.record_unlearned(session, lease, scene.past.weights(), {"seconds": 1.0})
        model = scene.model_owner.get(f"/models/{scene.model}").json()
        assert model["head_checkpoint_id"] == scene.head
        assert scene.states() == [("cancelled", "the model's owner cancelled the job")] * 2

    def test_the_owners_may_ask_again(self, scene: Scene) -> None:
        scene.model_owner.post(f"/jobs/{scene.job}/cancel")
        for owner, request in zip(scene.owners, scene.requests, strict=True):
            asked = owner.get(f"/requests/{request}").json()
            body = {"model_id": scene.model, "dataset_ids": asked["dataset_ids"]}
            assert owner.post("/requests", body).status_code == 202

    def test_again_changes_nothing(self, scene: Scene) -> None:
        first = scene.model_owner.post(f"/jobs/{scene.job}/cancel", {"reason": "first"}).json()
        again = scene.model_owner.post(f"/jobs/{scene.job}/cancel", {"reason": "second"})
        assert (again.status_code, again.json()) == (200, first)

    def test_a_pre_training_job(self, scene: Scene) -> None:
        body = {"dataset_ids": [scene.own]}
        started = scene.model_owner.post(f"/models/{scene.model}/pretrain", body).json()
        answer = scene.model_owner.post(f"/jobs/{started['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")

    def test_what_has_succeeded_stays(self, scene: Scene) -> None:
        scene.past.unlearned(scene.requests[0])
        answer = scene.model_owner.post(f"/jobs/{scene.job}/cancel")
        assert problem_of(answer, 409, "state-conflict")["state"] == "succeeded"
        assert [state for state, _ in scene.states()] == ["completed"] * 2

    @pytest.mark.parametrize("body", [{"reason": ""}, {"reason": 3}, {"why": "x"}, []])
    def test_a_body_that_is_none_is_refused(self, scene: Scene, body: Any) -> None:
        problem_of(scene.model_owner.post(f"/jobs/{scene.job}/cancel", body), 422, "invalid")
        assert scene.shown()["state"] == "queued"


class TestComparisons:
    """A comparison is ended like a job."""

    @pytest.fixture
    def comparison(self, scene: Scene) -> str:
        body = {
            "model_id": scene.model,
            "dataset_ids": [scene.own],
            "methods": [{"method": "fine_tune"}],
        }
        # Data that somebody asked to be forgotten is in the way; nobody asks any more.
        scene.model_owner.post(f"/jobs/{scene.job}/cancel")
        answer = scene.model_owner.post("/comparisons", body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def test_it_is_over_at_once_and_records_nothing(self, scene: Scene, comparison: str) -> None:
        with scene.past.sessions() as session:
            lease = scene.past.claimed(session.get_one(Comparison, comparison).job_id)
        address = f"/comparisons/{comparison}"
        answer = scene.model_owner.post(f"{address}/cancel", {"reason": "enough seen"})
        found = answer.json()
        assert (answer.status_code, found["state"]) == (200, "cancelled")
        assert found["reason"] == "the model's owner cancelled the job: enough seen"
        with scene.past.sessions.begin() as session, pytest.raises(LeaseLost):
            comparisons.record(session, lease, {"rows": []}, {})
        assert scene.model_owner.get(address).json() == found
        assert scene.model_owner.post(f"{address}/cancel").json() == found

    def test_a_finished_one_stays(self, scene: Scene, comparison: str) -> None:
        scene.past.compared(comparison)
        answer = scene.model_owner.post(f"/comparisons/{comparison}/cancel")
        problem_of(answer, 409, "state-conflict")

    def test_waiting_for_one_ends_when_it_is_cancelled(self, scene: Scene, comparison: str) -> None:
        body, key = scene.ask_again(comparison), {"Idempotency-Key": f"waited-{comparison}"}
        waited = {"Prefer": f"wait={WAIT_SECONDS}"} | key
        with ThreadPoolExecutor(1) as pool:
            begun = time.monotonic()
            waiting = pool.submit(
                lambda: scene.model_owner.post("/comparisons", body, headers=waited)
            )
            made = scene.model_owner.post("/comparisons", body, headers=key).json()["id"]
            scene.model_owner.post(f"/comparisons/{made}/cancel")
            answer = waiting.result()
        assert time.monotonic() - begun < WAIT_SECONDS / 2
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")


class TestTurns:
    """A waiting job may go before others of its owner."""

    def test_its_priority_is_set_and_logged(self, scene: Scene) -> None:
        answer = scene.model_owner.http.patch(f"/jobs/{scene.job}", json={"priority": -9})
        assert (answer.status_code, answer.json()["priority"]) == (200, -9)
        last = scene.log()[-1]
        assert (last["actor"], last["event"], last["priority"]) == ("you", "priority-set", -9)
        zero = scene.model_owner.http.patch(f"/jobs/{scene.job}", json={"priority": 0})
        assert zero.json()["priority"] == scene.log()[-1]["priority"] == 0

    @pytest.mark.parametrize("priority", [10, -10, 1.5, "1", None, True])
    def test_one_out_of_bounds_is_refused(self, scene: Scene, priority: Any) -> None:
        answer = scene.model_owner.http.patch(f"/jobs/{scene.job}", json={"priority": priority})
        assert problem_of(answer, 422, "invalid")["errors"][0]["pointer"] == "/priority"
        assert scene.shown()["priority"] == 0

    def test_a_running_job_has_no_turn(self, scene: Scene) -> None:
        scene.past.claimed(scene.job)
        answer = scene.model_owner.http.patch(f"/jobs/{scene.job}", json={"priority": 1})
        assert problem_of(answer, 409, "conflict")["state"] == "running"


class TestJobs:
    """What the model's owner is told of attempts."""

    def test_a_waiting_job_says_when_it_is_due(self, scene: Scene) -> None:
        found = scene.shown()
        assert found["due_at"] == found["created_at"]
        assert (found["worker"], found["failure"], found["snapshot_step"]) == (None, None, None)
        assert (found["attempt"], found["outages"], found["seconds_used"]) == (0, 0, 0)

    def test_a_crashed_job_says_how_and_from_where_it_goes_on(self, scene: Scene) -> None:
        lease = scene.past.claimed(scene.job)
        with scene.past.sessions.begin() as session:
            jobs.note_snapshot(session, lease, "snapshots/none", 40)
            jobs.retry(session, lease, CRASH, max_attempts=3, retry_seconds=60)
        found = scene.shown()
        assert (found["state"], found["worker"], found["snapshot_step"]) == ("queued", "tester", 40)
        assert found["failure"] == {
            "kind": "out-of-memory",
            "reason": CRASH.reason,
            "words": CRASH.words,
            "attempt": 1,
            "step": 40,
            "crashes": 1,
            "recompute": True,
        }
        assert found["due_at"] > found["started_at"]

    def test_a_failed_job_keeps_its_failure(self, scene: Scene) -> None:
        lease = scene.past.claimed(scene.job)
        with scene.past.sessions.begin() as session:
            jobs.fail(session, lease, CRASH)
        failure = scene.shown()["failure"]
        assert (failure["kind"], failure["words"], failure["crashes"]) == (
            CRASH.kind,
            CRASH.words,
            None,
        )
        assert scene.states() == [("failed", CRASH.reason)] * 2


class TestLog:
    """A job's whole life, for the model's owner."""

    def test_it_explains_every_attempt(self, scene: Scene) -> None:
        first = scene.past.claimed(scene.job)
        with scene.past.sessions.begin() as session:
            jobs.retry(session, first, CRASH, max_attempts=3, retry_seconds=0)
        second = scene.past.claimed(scene.job)
        with scene.past.sessions.begin() as session:
            jobs.release(session, second, "its worker was stopped")
        scene.past.unlearned(scene.requests[0])
        names = ("event", "attempt", "worker", "kind", "reason", "words")
        assert [tuple(each[name] for name in names) for each in scene.log()] == [
            ("queued", None, None, "unlearn", None, None),
            ("running", 1, "tester", None, None, None),
            ("queued", 1, "tester", CRASH.kind, CRASH.reason, CRASH.words),
            ("running", 2, "tester", None, None, None),
            ("queued", 2, "tester", None, "its worker was stopped", None),
            ("running", 3, "tester", None, None, None),
            ("succeeded", 3, "tester", None, None, None),
        ]
        assert [each["position"] for each in scene.log()] == [*range(1, 8)]

    def test_it_says_who_ended_it(self, scene: Scene) -> None:
        scene.model_owner.post(f"/jobs/{scene.job}/cancel", {"reason": "enough"})
        last = scene.log()[-1]
        assert (last["actor"], last["event"]) == ("you", "cancelled")
        assert last["reason"].endswith(": enough")
        owner, request = scene.owners[0], scene.requests[0]
        told = owner.get(f"/requests/{request}/log").json()["items"][-1]
        assert (told["actor"], told["event"]) == ("model owner", "cancelled")
