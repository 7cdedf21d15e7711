"""From a request's first state to its last over HTTP: approval, withdrawal, clocks, log. No worker runs here."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from tests.api.conftest import Past, User, problem_of

from expunge.registry import jobs
from expunge.registry.database import Sessions

LONG_WINDOW = 600
CRASH = jobs.Failure("signal", "ended by SIGKILL", "who knows which samples")


@dataclass(frozen=True)
class Scene:
    """A trained model whose owner approves requests by hand, and data of two owners."""

    past: Past
    model_owner: User
    data_owner: User
    other_owner: User
    model: str
    mine: str
    theirs: str

    def asked(self) -> str:
        """A request of the first owner."""
        return self._ask(self.data_owner, self.mine)

    def asked_by_other(self) -> str:
        """A request of the other owner."""
        return self._ask(self.other_owner, self.theirs)

    def _ask(self, owner: User, dataset: str) -> str:
        body = {"model_id": self.model, "dataset_ids": [dataset]}
        answer = owner.post("/requests", body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def approved(self, request_id: str) -> dict[str, Any]:
        answer = self.model_owner.post(f"/requests/{request_id}/approve")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def shown(self, request_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.data_owner.get(f"/requests/{request_id}").json()
        return found

    def log(self, user: User, request_id: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = user.get(f"/requests/{request_id}/log").json()["items"]
        return items


@pytest.fixture
def scene(past: Past, model_owner: User, data_owner: User, other_owner: User) -> Scene:
    own = past.sealed(model_owner)
    mine, theirs = past.granted(data_owner, model_owner), past.granted(other_owner, model_owner)
    model = model_owner.model(policy={"approval": "manual"})
    past.trained(model_owner, model, [own, mine, theirs])
    return Scene(past, model_owner, data_owner, other_owner, model, mine, theirs)


class TestApproval:
    """Where the policy says manual, a request waits for the model's owner."""

    def test_a_request_waits_and_is_queued_once_approved(self, scene: Scene) -> None:
        request = scene.asked()
        assert scene.shown(request)["state"] == "received"
        assert scene.approved(request)["state"] == "queued"
        assert scene.shown(request)["state"] == "queued"

    def test_a_rejection_is_read_by_the_requests_owner(self, scene: Scene) -> None:
        request = scene.asked()
        body = {"reason": "held as evidence until May"}
        answer = scene.model_owner.post(f"/requests/{request}/reject", body)
        assert (answer.status_code, answer.json()["state"]) == (200, "rejected")
        found = scene.shown(request)
        assert (found["state"], found["reason"]) == ("rejected", body["reason"])
        assert found["finished_at"] is not None

    def test_what_was_rejected_may_be_asked_again(self, scene: Scene) -> None:
        scene.model_owner.post(f"/requests/{scene.asked()}/reject", {"reason": "not now"})
        assert scene.shown(scene.asked())["state"] == "received"

    @pytest.mark.parametrize("call", ["approve", "reject"])
    def test_what_does_not_wait_is_not_decided_again(self, scene: Scene, call: str) -> None:
        request = scene.asked()
        scene.approved(request)
        answer = scene.model_owner.post(f"/requests/{request}/{call}", {"reason": "too late"})
        problem = problem_of(answer, 409, "state-conflict")
        assert problem["state"] == "queued"
        assert scene.shown(request)["state"] == "queued"

    @pytest.mark.parametrize(
        "body", [None, {}, {"reason": ""}, {"reason": "x" * 501}, {"reason": "a\u0000b"}]
    )
    def test_a_rejection_needs_its_reason(self, scene: Scene, body: Any) -> None:
        request = scene.asked()
        answer = scene.model_owner.post(f"/requests/{request}/reject", body)
        problem_of(answer, 422, "invalid")
        assert scene.shown(request)["state"] == "received"

    def test_other_model_owners_find_nothing_to_decide(
        self, scene: Scene, other_model_owner: User
    ) -> None:
        request = scene.asked()
        for call in ("approve", "reject"):
            answer = other_model_owner.post(f"/requests/{request}/{call}", {"reason": "mine"})
            problem_of(answer, 404, "not-found")


class TestWithdrawal:
    """An owner takes a request back until its job starts."""

    def test_before_approval(self, scene: Scene) -> None:
        request = scene.asked()
        answer = scene.data_owner.post(f"/requests/{request}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert answer.json()["reason"] == "withdrawn by its owner"

    def test_the_job_of_a_withdrawn_request_goes_on_for_the_others(self, scene: Scene) -> None:
        mine, theirs = scene.asked(), scene.asked_by_other()
        scene.approved(mine)
        scene.approved(theirs)
        job = scene.past.job_of(mine)
        scene.data_owner.post(f"/requests/{mine}/cancel")
        assert scene.model_owner.get(f"/jobs/{job}").json()["request_ids"] == [theirs]
        scene.other_owner.post(f"/requests/{theirs}/cancel")
        assert scene.model_owner.get(f"/jobs/{job}").json()["state"] == "cancelled"

    def test_again_changes_nothing(self, scene: Scene) -> None:
        request = scene.asked()
        first = scene.data_owner.post(f"/requests/{request}/cancel").json()
        again = scene.data_owner.post(f"/requests/{request}/cancel")
        assert (again.status_code, again.json()) == (200, first)
        assert len(scene.log(scene.data_owner, request)) == 2

    @pytest.mark.parametrize("alone", [True, False])
    def test_once_its_job_has_started_it_is_too_late_whoever_shares_it(
        self, scene: Scene, alone: bool
    ) -> None:
        request = scene.asked()
        if not alone:
            scene.approved(scene.asked_by_other())
        scene.approved(request)
        lease = scene.past.claimed(scene.past.job_of(request))
        answer = scene.data_owner.post(f"/requests/{request}/cancel")
        problem = problem_of(answer, 409, "state-conflict")
        expected = f"{request} can be withdrawn until its job starts, and that has started."
        assert problem["detail"] == f"{expected} It ends by itself."
        with scene.past.sessions.begin() as session:
            jobs.release(session, lease, "its worker was stopped")
        answer = scene.data_owner.post(f"/requests/{request}/cancel")
        assert problem_of(answer, 409, "state-conflict")["detail"] == problem["detail"]

    def test_a_completed_request_stays_completed(self, scene: Scene) -> None:
        request = scene.asked()
        scene.approved(request)
        scene.past.unlearned(request)
        problem_of(scene.data_owner.post(f"/requests/{request}/cancel"), 409, "state-conflict")
        assert scene.shown(request)["state"] == "completed"

    def test_what_was_withdrawn_may_be_asked_again(self, scene: Scene) -> None:
        scene.data_owner.post(f"/requests/{scene.asked()}/cancel")
        assert scene.shown(scene.asked())["state"] == "received"


class TestClocks:
    """How long an owner waits, and how long the old model serves on."""

    def test_the_answer_is_due_after_a_month(self, scene: Scene) -> None:
        found = scene.shown(scene.asked())
        made, due = (
            datetime.fromisoformat(found[f"{name}_at"]) for name in ("created", "deadline")
        )
        assert timedelta(days=28) <= due - made <= timedelta(days=31)
        assert (found["overdue"], found["finished_at"], found["effective_at"]) == (
            False,
            None,
            None,
        )

    def test_exposure_grows_until_the_result_is_in_force(
        self, scene: Scene, session_factory: Sessions
    ) -> None:
        scene.model_owner.http.patch(f"/models/{scene.model}/policy", json={"promotion": "manual"})
        request = scene.asked()
        aged(session_factory, request, days=2)
        assert scene.shown(request)["exposure_seconds"] >= 2 * 86_400
        scene.approved(request)
        result = scene.past.unlearned(request)
        done = scene.shown(request)
        assert (done["state"], done["effective_at"]) == ("completed", None)
        assert scene.shown(request)["exposure_seconds"] > done["exposure_seconds"]
        assert scene.model_owner.post(f"/checkpoints/{result}/promote").status_code == 200
        over = scene.shown(request)
        made, ended = (
            datetime.fromisoformat(over[f"{name}_at"]) for name in ("created", "effective")
        )
        assert over["exposure_seconds"] == pytest.approx((ended - made).total_seconds())
        assert scene.shown(request) == over

    def test_what_is_not_in_force_after_the_deadline_is_overdue(
        self, scene: Scene, session_factory: Sessions
    ) -> None:
        scene.model_owner.http.patch(f"/models/{scene.model}/policy", json={"promotion": "manual"})
        request = scene.asked()
        aged(session_factory, request, days=40)
        assert scene.shown(request)["overdue"] is True
        scene.approved(request)
        result = scene.past.unlearned(request)
        assert scene.shown(request)["overdue"] is True, "completed, but the old head still serves"
        scene.model_owner.post(f"/checkpoints/{result}/promote")
        assert scene.shown(request)["overdue"] is False

    def test_a_request_that_ended_without_result_has_no_clock_running(
        self, scene: Scene, session_factory: Sessions
    ) -> None:
        request = scene.asked()
        aged(session_factory, request, days=40)
        scene.data_owner.post(f"/requests/{request}/cancel")
        found = scene.shown(request)
        assert (found["overdue"], found["exposure_seconds"]) == (False, None)


def aged(sessions: Sessions, request_id: str, *, days: int) -> None:
    """Let the request have been made so many days ago."""
    statement = text(
        "UPDATE requests SET created_at = created_at - :age, deadline_at = deadline_at - :age "
        "WHERE id = :id"
    )
    with sessions.begin() as session:
        session.execute(statement, {"age": timedelta(days=days), "id": request_id})


class TestLog:
    """A request's life in order, each reader told what concerns them."""

    def test_it_tells_the_whole_life_to_its_owner(self, scene: Scene) -> None:
        before = datetime.now(UTC) - timedelta(minutes=1)
        request = scene.asked()
        scene.approved(request)
        scene.past.unlearned(request)
        found = scene.log(scene.data_owner, request)
        assert [(each["position"], each["actor"], each["event"]) for each in found] == [
            (1, "you", "received"),
            (2, "model owner", "approved"),
            (3, "service", "queued"),
            (4, "service", "running"),
            (5, "service", "completed"),
            (6, "service", "in-force"),
        ]
        times = [datetime.fromisoformat(each["at"]) for each in found]
        assert before < times[0]
        assert times == sorted(times)

    def test_the_models_owner_reads_who_asked(self, scene: Scene) -> None:
        request = scene.asked()
        scene.approved(request)
        found = scene.log(scene.model_owner, request)
        assert [each["actor"] for each in found] == [scene.data_owner.id, "you", "service"]

    def test_a_crash_is_told_by_its_reason_and_nothing_of_the_job(self, scene: Scene) -> None:
        request, other = scene.asked(), scene.asked_by_other()
        scene.approved(request)
        scene.approved(other)
        lease = scene.past.claimed(scene.past.job_of(request))
        with scene.past.sessions.begin() as session:
            jobs.retry(session, lease, CRASH, max_attempts=3, retry_seconds=0)
        for reader in (scene.data_owner, scene.model_owner):
            last = scene.log(reader, request)[-1]
            assert (last["event"], last["reason"]) == ("queued", "ended by SIGKILL")
            told = {name for name, value in last.items() if value is not None}
            assert told == {"position", "at", "actor", "event", "reason"}
        everything = scene.data_owner.get(f"/requests/{request}/log").text
        for hidden in (other, scene.other_owner.id, "job_", CRASH.words, "tester"):
            assert hidden not in everything

    def test_it_comes_in_pages(self, scene: Scene) -> None:
        request = scene.asked()
        scene.approved(request)
        path = f"/requests/{request}/log"
        first = scene.data_owner.get(path, params={"limit": 2}).json()
        rest = scene.data_owner.get(path, params={"cursor": first["next_cursor"]}).json()
        assert [each["position"] for each in first["items"] + rest["items"]] == [1, 2, 3]
        assert rest["next_cursor"] is None

    @pytest.mark.parametrize("cursor", ["OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "LTE", "eA", "%"])
    def test_a_cursor_that_is_none_is_refused(self, scene: Scene, cursor: str) -> None:
        path = f"/requests/{scene.asked()}/log"
        problem_of(scene.data_owner.get(path, params={"cursor": cursor}), 422, "invalid")
