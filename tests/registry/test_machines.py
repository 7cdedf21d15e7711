"""Whatever is called in whatever order, on a real database, leads where the twin of its lives leads."""

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tests.registry import test_jobs
from tests.registry.conftest import House, Scene, weights
from tests.registry.lives.parties import PICK, World
from tests.registry.lives.twin import (
    ENDS,
    JOB_PATHS,
    LIVE,
    NOT_CARRIED_OUT,
    REQUEST_PATHS,
)
from tests.registry.lives.workers import CRASH, MAX_ATTEMPTS, Workers

from expunge.registry import checkpoints, drift, jobs, models, policies
from expunge.registry.database import Sessions
from expunge.registry.tables import (
    TRAINING_KINDS,
    Checkpoint,
    Job,
    LogRow,
    Model,
    Request,
)
from expunge.registry.transitions import LeaseLost

EXAMPLES, STEPS = 15, 40
"""Runs, and calls in each: as many as fit into some 15 s. More find more."""
STATE_BY_JOB = {
    "queued": "queued",
    "running": "running",
    "evaluating": "running",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
"""A request's state by that of its job."""


class Lives(Workers):
    """And what must be true after every call."""

    @rule(pick=PICK)
    def look_at_the_drift(self, pick: int) -> None:
        with self.sessions() as session:
            model = session.get_one(Model, self.model(pick))
            head = session.get_one(Checkpoint, model.head_checkpoint_id)
            policy, sums = policies.of(model.policy), self.twin.drift(head.id)
            share = sums["forgotten_samples"] / self.twin.size(frozenset(head.trained_on))
            shown = drift.of(session, head, policy)
            assert shown["forgotten_share"] == pytest.approx(share)
            assert shown["retrain_advised"] == (
                share >= policy.max_forgotten_share
                or shown["utility_lost"] >= policy.max_utility_lost
                or shown["alignment_drift"] >= policy.max_alignment_drift
            )

    @invariant()
    def twins_agree(self) -> None:
        with self.sessions() as session:
            self.check_jobs(session)
            self.check_requests(session)
            self.check_checkpoints(session)
            self.check_heads(session)
            self.check_log(session)

    def check_jobs(self, session: Session) -> None:
        rows = session.scalars(
            select(Job).where(Job.model_id.in_(self.twin.models), Job.kind.in_(TRAINING_KINDS))
        ).all()
        early = select(Job.id).where(Job.state == "queued", Job.due_at > func.now())
        not_due = {*session.scalars(early)}
        assert {
            job.id: (
                *(job.model_id, job.kind, job.state, job.attempt, job.outages, job.priority),
                *(job.lease_token, job.snapshot_step, job.base_checkpoint_id),
                *(job.result_checkpoint_id, job.started_at is not None, job.id in not_due),
            )
            for job in rows
        } == {
            job_id: (
                *(job.model, job.kind, job.state, job.attempt, job.outages, job.priority),
                *(job.token, job.step, job.base),
                *(job.result, job.started, job.state == "queued" and not job.due),
            )
            for job_id, job in self.twin.jobs.items()
        }
        for job in rows:
            assert (job.finished_at is not None) == (job.state in ENDS)
            assert (job.snapshot_key is None) == (job.snapshot_step is None)
            assert job.reason or job.state not in {"failed", "cancelled"}
        running = [job.model_id for job in rows if job.state in LIVE]
        assert len(running) == len(set(running))

    def check_requests(self, session: Session) -> None:
        rows = session.scalars(select(Request).where(Request.model_id.in_(self.twin.models))).all()
        assert {
            row.id: (
                *(row.owner_id, row.model_id, frozenset(row.dataset_ids), row.state, row.job_id),
                row.effective_at is not None,
            )
            for row in rows
        } == {
            request_id: (
                *(request.owner, request.model, request.sets, request.state, request.job),
                self.twin.effective(request),
            )
            for request_id, request in self.twin.requests.items()
        }
        wanted: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            assert (row.finished_at is not None) == (row.state in ENDS)
            assert row.reason or row.state not in NOT_CARRIED_OUT
            if row.state not in NOT_CARRIED_OUT:
                wanted[row.model_id] += row.dataset_ids
            if row.job_id is not None:
                job = session.get_one(Job, row.job_id)
                assert row.state == STATE_BY_JOB[job.state]
        for sets in wanted.values():
            assert len(sets) == len(set(sets))

    def check_checkpoints(self, session: Session) -> None:
        rows = session.scalars(select(Checkpoint).where(Checkpoint.model_id.in_(self.twin.models)))
        found = {row.id: row for row in rows}
        assert {
            row.id: (
                *(row.model_id, row.parent_id, row.job_id, row.problem is not None),
                *(frozenset(row.trained_on), frozenset(row.forgotten)),
            )
            for row in found.values()
        } == {
            checkpoint_id: (
                *(checkpoint.model, checkpoint.parent, checkpoint.job, checkpoint.withheld),
                *(checkpoint.trained, checkpoint.forgotten),
            )
            for checkpoint_id, checkpoint in self.twin.checkpoints.items()
        }
        for checkpoint_id, row in found.items():
            assert (row.drift or drift.NONE) == pytest.approx(self.twin.drift(checkpoint_id))

    def check_heads(self, session: Session) -> None:
        for model_id, model in self.twin.models.items():
            row = session.get_one(Model, model_id)
            assert row.head_checkpoint_id == model.head
            head = session.get_one(Checkpoint, model.head)
            assert head.promoted_at is not None
            in_force = select(Request).where(
                Request.model_id == model_id, Request.effective_at.is_not(None)
            )
            for request in session.scalars(in_force):
                assert not set(request.dataset_ids) & set(head.retained)

    def check_log(self, session: Session) -> None:
        """The log tells each life in order, and nothing else."""
        told: dict[str, list[str | None]] = defaultdict(lambda: [None])
        named = [*self.twin.jobs, *self.twin.requests]
        entered: dict[str, int] = defaultdict(int)
        rows = select(LogRow).where(LogRow.subject_id.in_(named)).order_by(LogRow.seq)
        for row in session.scalars(rows):
            if row.event in {*STATE_BY_JOB, *REQUEST_PATHS, *ENDS}:
                told[row.subject_id].append(row.event)
            entered[f"{row.subject_id} {row.event}"] += 1
        for lives, paths in ((self.twin.jobs, JOB_PATHS), (self.twin.requests, REQUEST_PATHS)):
            for subject, life in lives.items():
                assert told[subject][-1] == life.state
                for before, after in pairwise(told[subject]):
                    assert after in paths[before]
        for job_id, job in self.twin.jobs.items():
            assert entered[f"{job_id} running"] == job.attempt
        for request_id, request in self.twin.requests.items():
            assert entered[f"{request_id} in-force"] == self.twin.effective(request)


def test_no_order_of_calls_leads_astray(session_factory: Sessions) -> None:
    world = World(session_factory)
    run_state_machine_as_test(
        lambda: Lives(world),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


class TestSeldomOrders:
    """What chance finds once in a long while."""

    def test_exposure_ends_also_where_a_new_head_never_held_the_data(
        self, house: House, scene: Scene
    ) -> None:
        training = house.pretraining(scene.model_owner, scene.model, [scene.own, scene.seconds])
        lease = house.claim(training)
        asked = [
            house.ask(owner, scene.model, own)
            for owner, own in ((scene.first, scene.firsts), (scene.second, scene.seconds))
        ]
        with house.sessions.begin() as session:
            checkpoints.record_pretrained(session, lease, weights(), {"seconds": 1.0})
            models.change_policy(session, scene.model_owner, scene.model, {"promotion": "manual"})
        lease = house.claim(str(house.request(asked[0]).job_id))
        with house.sessions.begin() as session:
            result = checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
        never_held, still_held = (house.request(each) for each in asked)
        assert (never_held.state, still_held.state) == ("completed", "completed")
        assert never_held.effective_at is not None
        assert still_held.effective_at is None
        with house.sessions.begin() as session:
            checkpoints.promote(session, scene.model_owner, result.id)
        assert house.request(asked[0]).effective_at == never_held.effective_at
        assert house.request(asked[1]).effective_at is not None

    def test_a_worker_whose_job_failed_meanwhile_has_lost_its_lease(self, house: House) -> None:
        lease = house.claim(house.seal_job())
        with house.sessions.begin() as session:
            jobs.fail(session, lease, CRASH)
        with pytest.raises(LeaseLost), house.sessions.begin() as session:
            jobs.retry(session, lease, CRASH, max_attempts=MAX_ATTEMPTS, retry_seconds=1)

    def test_evaluation_may_be_told_twice(self, house: House, scene: Scene) -> None:
        """A worker repeats what it wrote when the database went away before it answered."""
        job_id = str(house.request(house.ask(scene.first, scene.model, scene.firsts)).job_id)
        lease = house.claim(job_id)
        for _ in range(2):
            with house.sessions.begin() as session:
                jobs.start_evaluating(session, lease)
        assert test_jobs.states_logged(house, job_id) == ["queued", "running", "evaluating"]
