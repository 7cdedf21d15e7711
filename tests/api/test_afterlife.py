"""What is left after a removal, over HTTP: who reads what of it, how it ends, and what is refused then."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import select
from tests.api.conftest import Cast, Past, User, problem_of
from typer.testing import CliRunner

from expunge.client.cli import build_app
from expunge.registry import destruction, jobs, retention
from expunge.registry.settings import Settings
from expunge.registry.tables import Job, Role

UNFINISHED = ("queued", "running", "evaluating")


@dataclass(frozen=True)
class Case:
    """A removal that is in force, of the first data set of an owner's two."""

    past: Past
    owner: User
    model_owner: User
    model: str
    data: list[str]
    base: str
    request: str

    def residue(self, reader: User) -> list[dict[str, Any]]:
        answer = reader.get(f"/requests/{self.request}/residue")
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def policy(self, **change: Any) -> None:
        answer = self.model_owner.http.patch(f"/models/{self.model}/policy", json=change)
        assert answer.status_code == 200, answer.text

    def end_work(self) -> None:
        with self.past.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.state.in_(UNFINISHED))):
                jobs.cancel(session, job, actor="test", reason="over")

    def sweep(self) -> None:
        retention.start(self.past.sessions)
        destruction.finish_all(self.past.sessions, self.past.store)


def in_force(past: Past, data_owner: User, model_owner: User) -> Case:
    data = [past.granted(data_owner, model_owner) for _ in range(2)]
    model = model_owner.model()
    base = past.trained(model_owner, model, [past.sealed(model_owner), *data])
    body = {"model_id": model, "dataset_ids": data[:1]}
    request = str(data_owner.post("/requests", body).json()["id"])
    past.unlearned(request)
    case = Case(past, data_owner, model_owner, model, data, base, request)
    case.end_work()
    return case


@pytest.fixture
def case(past: Past, data_owner: User, model_owner: User) -> Case:
    """One to change."""
    return in_force(past, data_owner, model_owner)


@pytest.fixture(scope="module")
def kept(past: Past, data_owner: User, model_owner: User) -> Case:
    """One to look at."""
    return in_force(past, data_owner, model_owner)


def some(found: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [each for each in found if each["what"] == what]


def delete(user: User, dataset_id: str) -> Any:
    return user.http.delete(f"/datasets/{dataset_id}")


class TestResidue:
    """What still exists."""

    def test_its_owner_and_the_models_read_it_nobody_else(
        self, kept: Case, other_owner: User, other_model_owner: User, cast: Cast
    ) -> None:
        for reader in (kept.owner, kept.model_owner):
            [base] = some(kept.residue(reader), "checkpoint")
            assert (base["id"], base["state"]) == (kept.base, "kept")
            assert base["digest"].startswith("sha256:")
            assert base["until"] is not None
            assert some(kept.residue(reader), "raw-samples")[0]["id"] == kept.data[0]
        for stranger in (other_owner, other_model_owner, cast.party(Role.AUDITOR)):
            answer = stranger.get(f"/requests/{kept.request}/residue")
            problem_of(answer, 404, "not-found")

    def test_an_auditor_reads_of_what_is_delegated(self, kept: Case, cast: Cast) -> None:
        auditor = cast.party(Role.AUDITOR)
        body = {
            "auditor_id": auditor.id,
            "dataset_ids": kept.data[:1],
            "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
        }
        delegation = kept.owner.post("/delegations", body).json()["id"]
        assert [each["id"] for each in some(kept.residue(auditor), "raw-samples")] == kept.data[:1]
        kept.owner.http.delete(f"/delegations/{delegation}")
        problem_of(auditor.get(f"/requests/{kept.request}/residue"), 404, "not-found")


class TestDestroyed:
    """A checkpoint whose time is over."""

    @pytest.fixture
    def destroyed(self, case: Case) -> Case:
        case.policy(keep_days=0)
        case.sweep()
        return case

    def test_its_row_stays_without_weights(self, destroyed: Case) -> None:
        shown = destroyed.model_owner.get(f"/checkpoints/{destroyed.base}").json()
        assert (shown["state"], shown["destroyed_at"] is None) == ("destroyed", False)
        lineage = destroyed.model_owner.get(f"/models/{destroyed.model}/lineage").json()["items"]
        assert (lineage[0]["state"], lineage[0]["promotable"]) == ("destroyed", False)
        assert "was destroyed on 20" in lineage[0]["reason"]
        assert some(destroyed.residue(destroyed.owner), "checkpoint") == []

    def test_the_requests_log_says_so(self, destroyed: Case) -> None:
        log = destroyed.owner.get(f"/requests/{destroyed.request}/log").json()["items"]
        assert log[-1]["event"] == "checkpoint-destroyed"
        assert log[-1]["actor"] == "service"

    def test_no_download_no_way_back_no_audit(self, destroyed: Case) -> None:
        at = f"/checkpoints/{destroyed.base}"
        answers = [
            destroyed.model_owner.get(f"{at}/weights"),
            destroyed.model_owner.post(f"{at}/promote"),
            destroyed.owner.post("/audit", {"request_id": destroyed.request}),
        ]
        for answer in answers:
            problem = problem_of(answer, 409, "checkpoint-destroyed")
            assert destroyed.base in problem["detail"]
            assert problem["destroyed_at"]


class TestDeletion:
    """An owner deletes a data set."""

    def test_what_a_model_holds_is_refused_with_what_to_do(self, kept: Case) -> None:
        problem = problem_of(delete(kept.owner, kept.data[1]), 409, "dataset-in-use")
        [held] = problem["held_by"]
        assert (held["what"], held["id"]) == ("model", kept.model)
        assert "ask it to forget first" in problem["detail"]

    def test_what_was_forgotten_goes_and_stays_as_a_row(self, case: Case) -> None:
        answer = delete(case.owner, case.data[0])
        assert answer.status_code == 200, answer.text
        row = answer.json()
        assert (row["state"], row["name"], row["shards"]) == ("deleted", "", [])
        assert row["digest"] == "sha256:0"
        assert row["deleted_at"] is not None
        assert delete(case.owner, case.data[0]).status_code == 200
        assert case.owner.get(f"/datasets/{case.data[0]}").json()["state"] == "deleted"
        assert some(case.residue(case.owner), "raw-samples") == []

    def test_it_cannot_be_read_audited_granted_or_forgotten_again(self, case: Case) -> None:
        gone = case.data[0]
        delete(case.owner, gone)
        model = {"model_id": case.model, "dataset_ids": [gone]}
        answers = [
            case.owner.get(f"/datasets/{gone}/samples"),
            case.owner.post("/audit", {"request_id": case.request}),
            case.owner.post(f"/datasets/{gone}/grants", {"party_id": case.model_owner.id}),
            case.owner.post(f"/datasets/{gone}/seal"),
            case.owner.put_shard(gone, b"x"),
            case.owner.post("/requests", model),
        ]
        for answer in answers:
            problem_of(answer, 409, "dataset-deleted")
        problem_of(case.model_owner.get(f"/datasets/{gone}"), 404, "not-found")

    def test_somebody_elses_does_not_exist(self, kept: Case, other_owner: User) -> None:
        for stranger in (other_owner, kept.model_owner):
            problem_of(delete(stranger, kept.data[0]), 404, "not-found")

    def test_while_the_store_is_away_it_is_being_deleted(
        self, kept: Case, past: Past, settings: Settings
    ) -> None:
        dataset = kept.owner.open_dataset()
        key = past.weights().object_key
        with past.sessions.begin() as session:
            destruction.doom(session, dataset, [key])
        objects = Path(settings.object_store.removeprefix("file://"))
        objects.rename(objects.with_name("elsewhere"))
        try:
            answer = delete(kept.owner, dataset)
        finally:
            objects.with_name("elsewhere").rename(objects)
        assert (answer.status_code, answer.json()["state"]) == (202, "deleting")
        kept.sweep()
        assert kept.owner.get(f"/datasets/{dataset}").json()["state"] == "deleted"


class TestCommands:
    """The same by SDK and command line."""

    @pytest.fixture
    def run(self, url: str) -> Callable[..., Result]:
        def run(user: User, *arguments: str, typed: str | None = None) -> Result:
            secret = user.http.headers["Authorization"].removeprefix("Bearer ")
            env = {"EXPUNGE_URL": url, "EXPUNGE_KEY": secret, "COLUMNS": "120"}
            return CliRunner(env=env).invoke(build_app(), arguments, input=typed)

        return run

    def test_an_owner_reads_what_is_left_and_until_when(
        self, kept: Case, run: Callable[..., Result]
    ) -> None:
        [base] = some(kept.residue(kept.owner), "checkpoint")
        shown = run(kept.owner, "requests", "residue", kept.request)
        assert shown.exit_code == 0, shown.output
        for part in (kept.base, base["until"][:10], "its owner deletes it", "object store"):
            assert part in shown.stdout
        listed = run(kept.owner, "requests", "residue", kept.request, "--json")
        assert [each["what"] for each in json.loads(listed.stdout)] == [
            each["what"] for each in kept.residue(kept.owner)
        ]

    def test_a_data_set_is_deleted_once_the_question_is_answered(
        self, data_owner: User, run: Callable[..., Result]
    ) -> None:
        dataset = data_owner.open_dataset()
        assert run(data_owner, "datasets", "delete", dataset, typed="n\n").exit_code == 1
        assert data_owner.get(f"/datasets/{dataset}").json()["state"] == "open"
        deleted = run(data_owner, "datasets", "delete", dataset, "--yes", "--json")
        assert json.loads(deleted.stdout)["state"] == "deleted"

    def test_a_refusal_says_what_to_do(self, kept: Case, run: Callable[..., Result]) -> None:
        refused = run(kept.owner, "datasets", "delete", kept.data[1], "--yes")
        assert refused.exit_code == 1
        assert "ask it to forget first" in " ".join(refused.output.split())
