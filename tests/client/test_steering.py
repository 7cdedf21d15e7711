"""Deciding, withdrawing, steering and estimating, by SDK and command line, against the real service."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result
from tests.client.conftest import Service
from typer.testing import CliRunner

from expunge.client import Client, ProblemError
from expunge.client.cli import build_app

DAY = 86_400
_numbers = itertools.count()


@dataclass(frozen=True)
class Desk:
    """A model that gathers requests for a day once its owner has approved them, and who may ask."""

    service: Service
    model: str
    photos: str

    @property
    def trainer(self) -> Client:
        return self.service.cast.model_owner.client

    @property
    def ada(self) -> Client:
        return self.service.cast.owners[0].client

    def asked(self) -> str:
        return self.ada.create_request(self.model, [self.photos]).id

    def queued(self) -> tuple[str, str]:
        """An approved request and its job."""
        request = self.asked()
        self.trainer.approve_request(request)
        job = next(each for each in self.trainer.jobs() if request in each.request_ids)
        return request, job.id

    def run(self, who: str, *arguments: str) -> Result:
        """The command as `trainer` or `ada`."""
        cast = self.service.cast
        actor = cast.model_owner if who == "trainer" else cast.owners[0]
        env = {"COLUMNS": "160", "EXPUNGE_URL": self.service.url, "EXPUNGE_KEY": actor.key.secret}
        return CliRunner(env=env).invoke(build_app(), arguments)

    def shown(self, who: str, *arguments: str) -> str:
        result = self.run(who, *arguments)
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
def desk(service: Service, tmp_path: Path) -> Desk:
    trainer, outcome = service.cast.model_owner.client, service.outcome
    weights = tmp_path / "encoder.safetensors"
    trainer.download_weights(outcome.base.id, weights)
    model = trainer.create_model(
        f"desk {next(_numbers)}",
        dict(outcome.model.encoder or {}),
        policy={"approval": "manual", "batch_window_seconds": DAY},
    )
    photos = outcome.owners[0].dataset.id
    trainer.upload_checkpoint(model.id, weights, [outcome.retained.id, photos])
    return Desk(service, model.id, photos)


class TestRequests:
    """What the model's owner decides and the data owner takes back."""

    def test_a_request_waits_for_approval_and_can_be_withdrawn_until_it_starts(
        self, desk: Desk
    ) -> None:
        request = desk.asked()
        assert desk.ada.request(request).state == "received"
        assert desk.trainer.approve_request(request).state == "queued"
        assert desk.ada.withdraw_request(request).state == "cancelled"
        assert desk.ada.withdraw_request(request).reason == "withdrawn by its owner"
        told = [(each.actor, each.event) for each in desk.ada.request_log(request)]
        assert told == [
            ("you", "received"),
            ("model owner", "approved"),
            ("service", "queued"),
            ("you", "cancelled"),
        ]

    def test_a_rejection_tells_its_reason(self, desk: Desk) -> None:
        request = desk.asked()
        rejected = desk.trainer.reject_request(request, "not ours to forget")
        assert (rejected.state, rejected.reason) == ("rejected", "not ours to forget")
        with pytest.raises(ProblemError) as caught:
            desk.trainer.approve_request(request)
        assert caught.value.status == 409

    def test_the_command_line_decides_and_shows_the_clock(self, desk: Desk) -> None:
        request = desk.asked()
        waiting = desk.shown("ada", "requests", "show", request)
        assert "exposed for" in waiting.lower()
        assert "due in 3" in waiting
        assert "queued" in desk.shown("trainer", "requests", "approve", request)
        assert "in 3" in desk.shown("ada", "requests", "list")
        withdrawn = desk.shown("ada", "requests", "withdraw", request)
        assert "It ended without a result: withdrawn by its owner." in withdrawn
        log = desk.shown("ada", "requests", "log", request)
        assert "model owner" in log
        assert "withdrawn by its owner" in log
        assert desk.shown("ada", "requests", "log", request, "--json").startswith("[{")
        refused = desk.run("trainer", "requests", "reject", request, "--reason", "late")
        assert refused.exit_code == 1
        assert "is cancelled; it cannot become rejected" in refused.output


class TestJobs:
    """Cancel, turns, log."""

    def test_a_cancelled_job_ends_its_requests_with_the_reason(self, desk: Desk) -> None:
        request, job = desk.queued()
        ended = desk.trainer.cancel_job(job, "wrong window")
        assert ended.state == "cancelled"
        assert desk.trainer.cancel_job(job).reason == ended.reason
        told = desk.ada.request(request)
        assert (told.state, told.reason) == ("cancelled", ended.reason)
        last = list(desk.trainer.job_log(job))[-1]
        assert (last.actor, last.event, last.reason) == ("you", "cancelled", ended.reason)

    def test_a_waiting_job_is_given_another_turn(self, desk: Desk) -> None:
        _, job = desk.queued()
        assert desk.trainer.set_priority(job, 7).priority == 7
        assert desk.trainer.job(job).due_at is not None

    def test_the_command_line_does_the_same(self, desk: Desk) -> None:
        _, job = desk.queued()
        desk.shown("trainer", "jobs", "priority", job, "--", "-3")
        assert desk.trainer.job(job).priority == -3
        assert desk.run("trainer", "jobs", "priority", job, "12").exit_code == 2
        assert "wrong window" in desk.shown(
            "trainer", "jobs", "cancel", job, "--reason", "wrong window"
        )
        log = desk.shown("trainer", "jobs", "log", job)
        assert "priority-set -3" in log
        assert "the model's owner cancelled the job: wrong window" in log

    def test_a_finished_jobs_log_tells_its_attempts(self, desk: Desk) -> None:
        log = desk.shown("trainer", "jobs", "log", desk.service.outcome.unlearning.id)
        assert "running (attempt 1)" in log
        assert "succeeded (attempt 1)" in log


class TestModels:
    """Policy, history, estimates."""

    def test_the_policy_is_shown_and_changed_in_parts(self, desk: Desk) -> None:
        changes = ("max_batch_samples=1000", "min_forgetting=0.01")
        changed = desk.shown("trainer", "models", "policy", desk.model, *changes)
        assert "approval manual" in changed
        assert "max_batch_samples 1000" in changed
        again = desk.shown("trainer", "models", "policy", desk.model, "max_batch_samples=null")
        assert "max_batch_samples none" in again
        shown = json.loads(desk.shown("trainer", "models", "policy", desk.model, "--json"))
        assert (shown["min_forgetting"], shown["max_batch_samples"]) == (0.01, None)
        refused = desk.run("trainer", "models", "policy", desk.model, "approval=maybe")
        assert refused.output.count("/approval: Input should be 'automatic' or 'manual'") == 1
        assert "expected" not in refused.output
        unknown = desk.run("trainer", "models", "policy", desk.model, "foo=1")
        assert "a policy has no 'foo'; it has approval, " in unknown.output
        told = desk.shown("trainer", "models", "policy", "--help")
        assert all(name in told for name in shown)

    def test_the_lineage_says_where_one_can_go_back_to(self, desk: Desk) -> None:
        outcome = desk.service.outcome
        first, last = desk.trainer.lineage(outcome.model.id)
        assert (first.id, last.id) == (outcome.base.id, outcome.result.id)
        assert (last.is_head, first.promotable) == (True, False)
        assert "forgotten on request" in str(first.reason)
        drawn = desk.shown("trainer", "models", "lineage", outcome.model.id)
        assert "was head" in drawn
        assert "still holds data that was forgotten on request" in drawn.replace("\n", " ")

    def test_a_model_shows_what_removals_have_cost(self, desk: Desk) -> None:
        model = desk.trainer.model(desk.service.outcome.model.id)
        assert model.drift is not None
        assert model.drift.jobs == 1
        assert model.drift.forgotten_samples == 20
        shown = desk.shown("trainer", "models", "show", model.id)
        assert ("A retrain is advised" in shown) is model.drift.retrain_advised

    def test_an_estimate_rests_on_what_jobs_took(self, desk: Desk) -> None:
        found = {each.method: each for each in desk.ada.estimate(desk.model, [desk.photos])}
        assert found["fine_tune"].basis == "jobs of this architecture"
        assert found["fine_tune"].seconds is not None
        assert found["retrain"].seconds is not None
        assert found["retrain"].seconds.expected > found["fine_tune"].seconds.expected
        chosen = [{"method": "fine_tune", "params": {"epochs": 3}}]
        (one,) = desk.ada.estimate(desk.model, [desk.photos], chosen)
        assert one.params["epochs"] == 3

    def test_the_command_line_draws_it(self, desk: Desk) -> None:
        asked = ("estimate", desk.model, desk.photos)
        drawn = desk.shown("ada", *asked)
        assert "alignment_calibration" in drawn
        assert "From what jobs of this architecture took." in drawn
        one = json.loads(desk.shown("ada", *asked, "--method", "fine_tune:epochs=4", "--json"))
        assert [each["params"]["epochs"] for each in one] == [4]
