"""What workers may do to the registry, in order or not, as rules of a state machine beside its twin."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy.orm import Session
from tests.registry import test_jobs
from tests.registry.conftest import weights
from tests.registry.lives.parties import OWNERS, PICK, SOME, WAY, Parties, World
from tests.registry.lives.twin import ENDS, Measured

from expunge.registry import checkpoints, jobs, models, waiting
from expunge.registry.tables import TRAINING_KINDS, Job, Model
from expunge.registry.transitions import LeaseLost

LEASE_SECONDS = 3600.0
MAX_ATTEMPTS = 2
MAX_OUTAGES = 1
CRASH = jobs.Failure("signal", "ended by SIGKILL")
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

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.leases: list[jobs.Lease] = []

    def live(self) -> list[jobs.Lease]:
        tokens = {job.token for job in self.twin.jobs.values()}
        return [lease for lease in self.leases if lease.token in tokens]

    def lost(self) -> list[jobs.Lease]:
        live = self.live()
        return [lease for lease in self.leases if lease not in live]

    def one_live(self, pick: int) -> jobs.Lease:
        return self.live()[pick % len(self.live())]

    def open_jobs(self) -> list[str]:
        """Those that run or wait."""
        return [job_id for job_id, job in self.twin.jobs.items() if job.state not in ENDS]

    def running(self, pick: int) -> jobs.Lease | None:
        """The lease of an open job, which starts if it does not run; None if it makes no sense any more."""
        job_id = self.open_jobs()[pick % len(self.open_jobs())]
        if self.twin.jobs[job_id].token is None:
            self.make_due(job_id)
            self.take(job_id)
        token = self.twin.jobs[job_id].token
        return next((lease for lease in self.leases if lease.token == token), None)

    @rule(worker=st.sampled_from(["one", "two"]))
    def look_for_work(self, worker: str) -> None:
        claimable = self.twin.claimable()
        done = [job_id for job_id in claimable if self.twin.is_done_already(job_id)]
        lease = waiting.claim_next(
            self.sessions, TRAINING_KINDS, worker=worker, lease_seconds=LEASE_SECONDS
        )
        assert (lease is None) == (claimable == done)
        for job_id in done:
            # Whose turn it is, is told elsewhere.
            if lease is None or self.house.job(job_id).state == "succeeded":
                self.twin.end_at_once(job_id)
        if lease is not None:
            assert lease.job_id in claimable
            self.start(lease)

    @precondition(lambda self: self.twin.jobs)
    @rule(pick=PICK)
    def take_a_certain_job(self, pick: int) -> None:
        self.take(self.one_job(pick))

    def take(self, job_id: str) -> None:
        claimable = job_id in self.twin.claimable()
        done = claimable and self.twin.is_done_already(job_id)
        lease = waiting.claim(self.sessions, job_id, worker="three", lease_seconds=LEASE_SECONDS)
        assert (lease is not None) == (claimable and not done)
        if lease is not None:
            self.start(lease)
        elif done:
            self.twin.end_at_once(job_id)

    def start(self, lease: jobs.Lease) -> None:
        """A worker asks for consent before it trains fresh weights."""
        self.leases.append(lease)
        self.twin.start(lease.job_id, lease.token)
        job = self.twin.jobs[lease.job_id]

        def ask_for_consent(session: Session) -> None:
            model = session.get_one(Model, job.model)
            models.check_training_data(session, self.model_owner, model, sorted(job.sets))

        if job.kind == "pretrain":
            refusal = self.twin.refuses_training(job.model, job.sets)
            self.answer(refusal, ask_for_consent)
            if refusal is not None:
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

    @precondition(lambda self: self.open_jobs())
    @rule(
        pick=PICK,
        what=st.sampled_from(["crash", "crash", "silence", "damage", "error", "stop", "outage"]),
        pause=st.sampled_from([0.0, 60.0]),
    )
    def go_wrong(self, pick: int, what: str, pause: float) -> None:
        lease = self.running(pick)
        if lease is None:
            return
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

    @precondition(lambda self: self.open_jobs())
    @rule(pick=PICK, measured=MEASURED)
    def succeed(self, pick: int, measured: Measured) -> None:
        lease = self.running(pick)
        if lease is None:
            return
        if lease.kind == "pretrain":
            row = self.answer(
                None, checkpoints.record_pretrained, lease, weights(), {"seconds": 1.0}
            )
            self.twin.pretrained(lease.job_id, row.id)
        else:
            metrics = metrics_of(measured)
            row = self.answer(None, checkpoints.record_unlearned, lease, weights(), metrics)
            self.twin.unlearned(lease.job_id, row.id, measured)

    @rule(
        pick=PICK, owners=OWNERS, bits=SOME, way=WAY, crashes=st.integers(0, 2), measured=MEASURED
    )
    def forget(
        self, *, pick: int, owners: set[int], bits: int, way: int, crashes: int, measured: Measured
    ) -> None:
        """A whole life, whose parts would seldom come together by chance."""
        self.ask(pick, owners, bits, way)
        newest = len(self.open_jobs()) - 1
        for _ in range(crashes):
            if self.open_jobs():
                self.go_wrong(newest, "crash", 60.0)
        if self.open_jobs():
            self.succeed(newest, measured)

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
