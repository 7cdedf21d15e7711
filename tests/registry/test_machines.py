"""Whatever is called in whatever order, on a real database, leads where the twin of its lives leads."""

from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tests.registry import test_jobs
from tests.registry.conftest import House, Scene, weights
from tests.registry.machine import PICK, Parties
from tests.registry.twin import ENDS, JOB_PATHS, LIVE, NOT_CARRIED_OUT, REQUEST_PATHS, Measured

from expunge.registry import checkpoints, drift, jobs, models, policies, waiting
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

EXAMPLES, STEPS = 20, 40
"""Runs, and calls in each: as many as fit into some 20 s. More find more."""
LEASE_SECONDS = 3600.0
MAX_ATTEMPTS = 2
MAX_OUTAGES = 1
CRASH = jobs.Failure("signal", "ended by SIGKILL")
STATE_BY_JOB = {
    "queued": "queued",
    "running": "running",
    "evaluating": "running",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
"""A request's state by that of its job."""
MEASURED = st.builds(
    Measured,
    forgetting=st.sampled_from([None, 0.0, 0.2]),
    retain=st.sampled_from([0.0, 0.03]),
    loss=st.sampled_from([None, 0.0, 0.1]),
)


def metrics_of(measured: Measured) -> dict[str, Any]:
    """As a worker reports them."""

    def group(mean: float | None) -> dict[str, Any] | None:
        return None if mean is None else {"forgetting_score": {"mean": mean}}

    groups = {"unlearn": group(measured.forgetting), "retain": group(measured.retain)}
    found: dict[str, Any] = {"seconds": 1.0, "evaluation": {"encoder": groups}}
    if measured.loss is not None:
        found["utility"] = {"before": 0.9, "after": 0.9 - measured.loss}
    return found


class Workers(Parties):
    """And what workers do, in order or not."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(sessions)
        self.leases: list[jobs.Lease] = []

    def live(self) -> list[jobs.Lease]:
        tokens = {job.token for job in self.twin.jobs.values()}
        return [lease for lease in self.leases if lease.token in tokens]

    def lost(self) -> list[jobs.Lease]:
        live = self.live()
        return [lease for lease in self.leases if lease not in live]

    def one_live(self, pick: int) -> jobs.Lease:
        return self.live()[pick % len(self.live())]

    @rule(worker=st.sampled_from(["one", "two"]))
    def look_for_work(self, worker: str) -> None:
        claimable = self.twin.claimable()
        lease = waiting.claim_next(
            self.sessions, TRAINING_KINDS, worker=worker, lease_seconds=LEASE_SECONDS
        )
        assert (lease is not None) == bool(claimable)
        if lease is not None:
            assert lease.job_id in claimable
            self.start(lease)

    @precondition(lambda self: self.twin.jobs)
    @rule(pick=PICK)
    def take_a_certain_job(self, pick: int) -> None:
        job_id = self.one_job(pick)
        claimable = job_id in self.twin.claimable()
        lease = waiting.claim(self.sessions, job_id, worker="three", lease_seconds=LEASE_SECONDS)
        assert (lease is not None) == claimable
        if lease is not None:
            self.start(lease)

    def start(self, lease: jobs.Lease) -> None:
        """Workers look first whether the job still makes sense."""
        self.leases.append(lease)
        self.twin.start(lease.job_id, lease.token)
        job = self.twin.jobs[lease.job_id]

        def ask_for_consent(session: Session) -> None:
            model = session.get_one(Model, job.model)
            models.check_training_data(session, self.model_owner, model, sorted(job.sets))

        if job.kind == "pretrain":
            refusal = self.twin.refuses_training(job.model, job.sets)
            self.answer(refusal, ask_for_consent)
            senseless = refusal is not None
        else:
            senseless = not self.twin.to_forget(lease.job_id)
        if senseless:
            self.fail(lease)

    def fail(self, lease: jobs.Lease) -> None:
        self.answer(None, jobs.fail, lease, jobs.Failure("refused", "it makes no sense any more"))
        self.twin.end(lease.job_id, "failed", "failed")

    @precondition(lambda self: self.live())
    @rule(pick=PICK, step=st.integers(0, 5))
    def report(self, pick: int, step: int) -> None:
        lease = self.one_live(pick)
        self.answer(None, jobs.heartbeat, lease, lease_seconds=LEASE_SECONDS, progress={"n": step})
        self.answer(None, jobs.note_snapshot, lease, f"snapshots/{step}", step)
        self.twin.jobs[lease.job_id].step = step

    @precondition(lambda self: self.live())
    @rule(pick=PICK)
    def evaluate(self, pick: int) -> None:
        lease = self.one_live(pick)
        self.answer(None, jobs.start_evaluating, lease)
        self.twin.jobs[lease.job_id].state = "evaluating"

    @precondition(lambda self: self.live())
    @rule(
        pick=PICK,
        what=st.sampled_from(["damage", "error", "crash", "silence", "stop", "outage"]),
        pause=st.sampled_from([0.0, 60.0]),
    )
    def go_wrong(self, pick: int, what: str, pause: float) -> None:
        lease = self.one_live(pick)
        match what:
            case "damage":
                self.answer(None, jobs.drop_snapshot, lease, "it is damaged")
                self.twin.jobs[lease.job_id].step = None
            case "error":
                self.fail(lease)
            case "crash":
                limits = {"max_attempts": MAX_ATTEMPTS, "retry_seconds": pause}
                self.answer(None, jobs.retry, lease, CRASH, **limits)
                self.twin.crash(lease.job_id, max_attempts=MAX_ATTEMPTS, due=not pause)
            case "silence":
                self.fall_silent(lease)
            case "stop":
                self.answer(None, jobs.release, lease, "its worker was stopped")
                self.twin.requeue(lease.job_id, due=True)
            case "outage":
                limits = {"max_outages": MAX_OUTAGES, "retry_seconds": pause}
                self.answer(None, jobs.wait_out, lease, "the store is away", **limits)
                self.twin.outage(lease.job_id, max_outages=MAX_OUTAGES, due=not pause)

    def fall_silent(self, lease: jobs.Lease) -> None:
        def let_expire(session: Session) -> None:
            job = session.get_one(Job, lease.job_id)
            job.lease_expires_at = job.created_at - timedelta(seconds=1)

        self.answer(None, let_expire)
        taken = self.answer(None, jobs.reclaim_expired, max_attempts=MAX_ATTEMPTS)
        assert [job.id for job in taken] == [lease.job_id]
        self.twin.crash(lease.job_id, max_attempts=MAX_ATTEMPTS, due=True)

    @rule(worker=st.sampled_from(["one", "two"]), measured=MEASURED)
    def carry_out_what_is_next(self, worker: str, measured: Measured) -> None:
        self.look_for_work(worker)
        if self.live():
            self.succeed(-1, measured)

    @precondition(lambda self: self.live())
    @rule(pick=PICK, measured=MEASURED)
    def succeed(self, pick: int, measured: Measured) -> None:
        lease = self.one_live(pick)
        if lease.kind == "pretrain":
            row = self.answer(
                None, checkpoints.record_pretrained, lease, weights(), {"seconds": 1.0}
            )
            self.twin.pretrained(lease.job_id, row.id)
        else:
            metrics = metrics_of(measured)
            row = self.answer(None, checkpoints.record_unlearned, lease, weights(), metrics)
            self.twin.unlearned(lease.job_id, row.id, measured)

    @precondition(lambda self: self.lost())
    @rule(pick=PICK, write=st.sampled_from(test_jobs.ZOMBIE_WRITES))
    def write_with_a_lost_lease(
        self, pick: int, write: Callable[[Session, jobs.Lease], None]
    ) -> None:
        lease = self.lost()[pick % len(self.lost())]
        before = test_jobs.snapshot(self.house)
        if write is test_jobs.record and lease.kind == "pretrain":
            self.answer(LeaseLost, checkpoints.record_pretrained, lease, weights(), {})
        else:
            self.answer(LeaseLost, write, lease)
        assert test_jobs.snapshot(self.house) == before


class Lives(Workers):
    """And what must be true after every call."""

    @invariant()
    def twins_agree(self) -> None:
        with self.sessions() as session:
            self.check_jobs(session)
            self.check_requests(session)
            self.check_checkpoints(session)
            self.check_heads(session)
            self.check_log(session)

    def check_jobs(self, session: Session) -> None:
        rows = session.scalars(select(Job).where(Job.model_id.in_(self.twin.models))).all()
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
            self.check_advice(session, row, head)

    def check_advice(self, session: Session, model: Model, head: Checkpoint) -> None:
        policy, sums = policies.of(model.policy), self.twin.drift(head.id)
        share = sums["forgotten_samples"] / self.twin.size(frozenset(head.trained_on))
        shown = drift.of(session, head, policy)
        assert shown["forgotten_share"] == pytest.approx(share)
        assert shown["retrain_advised"] == (
            share >= policy.max_forgotten_share
            or shown["utility_lost"] >= policy.max_utility_lost
            or shown["alignment_drift"] >= policy.max_alignment_drift
        )

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
    run_state_machine_as_test(
        lambda: Lives(session_factory),
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
