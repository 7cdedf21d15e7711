"""The queue: one executor per job, one training job per model, and nothing from an attempt that lost its lease."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from tests.registry.conftest import LEASE_SECONDS, House, Scene, expire, weights

from expunge.registry import checkpoints, datasets, jobs, models, waiting
from expunge.registry.errors import AlreadyForgotten
from expunge.registry.tables import Checkpoint, Dataset, Job, JobKind, LogRow, Model, Role
from expunge.registry.transitions import LeaseLost, StateChanged, move

CLAIMERS = 8
CRASH = jobs.Failure("signal", "ended by SIGKILL", "last words of the test")


def at_once(count: int, call: Callable[[], Any]) -> list[Any]:
    """The results of calls that begin together in threads of their own."""
    gate = threading.Barrier(count)
    results: list[Any] = []

    def run() -> None:
        gate.wait()
        results.append(call())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def claim(house: House, job_id: str) -> jobs.Lease | None:
    return waiting.claim(house.sessions, job_id, worker="tester", lease_seconds=LEASE_SECONDS)


def states_logged(house: House, subject: str) -> list[str]:
    with house.sessions() as session:
        return list(
            session.scalars(
                select(LogRow.event).where(LogRow.subject_id == subject).order_by(LogRow.seq)
            )
        )


class TestClaim:
    """Who may work on a job."""

    def test_of_many_claimers_one_gets_it(self, house: House) -> None:
        job_id = house.seal_job()
        leases = [lease for lease in at_once(CLAIMERS, lambda: claim(house, job_id)) if lease]
        assert len(leases) == 1
        job = house.job(job_id)
        assert (job.state, job.attempt, job.lease_token) == ("running", 1, leases[0].token)
        assert states_logged(house, job_id) == ["queued", "running"]

    def test_a_finished_job_is_not_to_be_had(self, house: House) -> None:
        job_id = house.seal_job()
        lease = house.claim(job_id)
        with house.sessions.begin() as session:
            jobs.succeed(session, lease)
        assert claim(house, job_id) is None

    def test_an_unknown_job_is_not_to_be_had(self, house: House) -> None:
        assert claim(house, "job_" + "0" * 32) is None

    def test_a_job_is_not_claimed_before_its_window_ends(self, house: House, scene: Scene) -> None:
        with house.sessions.begin() as session:
            models.change_policy(
                session, scene.model_owner, scene.model, {"batch_window_seconds": 600}
            )
        request = house.request(house.ask(scene.first, scene.model, scene.firsts))
        assert claim(house, str(request.job_id)) is None
        assert request.state == "queued"

    def test_a_claimed_unlearning_job_starts_from_the_head(
        self, house: House, scene: Scene
    ) -> None:
        request_id = house.ask(scene.first, scene.model, scene.firsts)
        job_id = str(house.request(request_id).job_id)
        house.claim(job_id)
        assert house.job(job_id).base_checkpoint_id == scene.base
        assert house.request(request_id).state == "running"


class TestOneTrainingJobPerModel:
    """The partial unique index holds even where the check before it does not."""

    def two_jobs(self, house: House, scene: Scene) -> list[str]:
        """Other parameters make another job."""
        first = house.ask(scene.first, scene.model, scene.firsts)
        second = house.ask(scene.second, scene.model, scene.seconds, {"epochs": 3})
        return [str(house.request(each).job_id) for each in (first, second)]

    def test_the_second_waits_for_the_first(self, house: House, scene: Scene) -> None:
        first, second = self.two_jobs(house, scene)
        assert first != second
        lease = house.claim(first)
        assert claim(house, second) is None
        assert house.job(second).state == "queued"
        with house.sessions.begin() as session:
            result = checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0}).id
        house.claim(second)
        assert house.job(second).base_checkpoint_id == result

    def test_of_two_claimed_at_once_one_runs(self, house: House, scene: Scene) -> None:
        job_ids = self.two_jobs(house, scene)
        order = iter(job_ids * 4)
        got = [lease for lease in at_once(8, lambda: claim(house, next(order))) if lease]
        assert len(got) == 1
        assert sorted(house.job(each).state for each in job_ids) == ["queued", "running"]

    def test_the_database_refuses_a_second_running_one(self, house: House, scene: Scene) -> None:
        first, second = self.two_jobs(house, scene)
        house.claim(first)
        with pytest.raises(IntegrityError, match="uq_jobs_one_running_per_model"):  # noqa: SIM117
            with house.sessions.begin() as session:
                move(session, session.get_one(Job, second), "running", lease_token="forged")

    def test_models_do_not_wait_for_each_other(self, house: House, scene: Scene) -> None:
        house.claim(self.two_jobs(house, scene)[0])
        other = house.model(scene.model_owner)
        assert claim(house, house.pretraining(scene.model_owner, other, [scene.own])) is not None

    def test_the_database_refuses_a_running_job_without_lease(self, house: House) -> None:
        job_id = house.seal_job()
        with pytest.raises(IntegrityError, match="ck_jobs_lease"):  # noqa: SIM117
            with house.sessions.begin() as session:
                move(session, session.get_one(Job, job_id), "running")


def heartbeat(session: Session, lease: jobs.Lease) -> None:
    jobs.heartbeat(session, lease, lease_seconds=LEASE_SECONDS, progress={"step": 99})


def fail(session: Session, lease: jobs.Lease) -> None:
    jobs.fail(session, lease, CRASH)


def retry(session: Session, lease: jobs.Lease) -> None:
    jobs.retry(session, lease, CRASH, max_attempts=3, retry_seconds=1)


def wait_out(session: Session, lease: jobs.Lease) -> None:
    jobs.wait_out(session, lease, "from the grave", max_outages=3, retry_seconds=1)


def note_snapshot(session: Session, lease: jobs.Lease) -> None:
    jobs.note_snapshot(session, lease, "snapshots/from/the/grave", 99)


def drop_snapshot(session: Session, lease: jobs.Lease) -> None:
    jobs.drop_snapshot(session, lease, "from the grave")


def release(session: Session, lease: jobs.Lease) -> None:
    jobs.release(session, lease, "from the grave")


def record(session: Session, lease: jobs.Lease) -> None:
    checkpoints.record_unlearned(session, lease, weights(), {"seconds": 9.0})


ZOMBIE_WRITES = [
    heartbeat,
    fail,
    retry,
    wait_out,
    release,
    record,
    note_snapshot,
    drop_snapshot,
    jobs.start_evaluating,
]


class TestFencing:
    """An attempt that fell silent and comes back writes nothing."""

    def expired(self, house: House, scene: Scene) -> tuple[str, str, jobs.Lease]:
        request_id = house.ask(scene.first, scene.model, scene.firsts)
        job_id = str(house.request(request_id).job_id)
        zombie = house.claim(job_id)
        with house.sessions.begin() as session:
            expire(session, job_id)
        with house.sessions.begin() as session:
            jobs.reclaim_expired(session, max_attempts=3)
        return request_id, job_id, zombie

    @pytest.mark.parametrize("write", ZOMBIE_WRITES)
    @pytest.mark.parametrize("claimed_again", [False, True])
    def test_a_zombie_writes_nothing(
        self, house: House, scene: Scene, write: Callable[..., None], *, claimed_again: bool
    ) -> None:
        request_id, job_id, zombie = self.expired(house, scene)
        if claimed_again:
            house.claim(job_id)
        before = snapshot(house)
        with pytest.raises(LeaseLost):  # noqa: SIM117
            with house.sessions.begin() as session:
                write(session, zombie)
        assert snapshot(house) == before
        assert house.request(request_id).state == ("running" if claimed_again else "queued")
        assert house.head(scene.model) == scene.base

    def test_the_next_attempt_finishes_the_job(self, house: House, scene: Scene) -> None:
        request_id, job_id, _ = self.expired(house, scene)
        lease = house.claim(job_id)
        assert lease.attempt == 2
        with house.sessions.begin() as session:
            result = checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
            assert result.forgotten == [scene.firsts]
        assert house.request(request_id).state == "completed"
        assert house.head(scene.model) == result.id
        assert states_logged(house, job_id) == [
            "queued",
            "running",
            "queued",
            "running",
            "succeeded",
        ]

    def test_a_finished_attempt_cannot_finish_twice(self, house: House, scene: Scene) -> None:
        job_id = str(house.request(house.ask(scene.first, scene.model, scene.firsts)).job_id)
        lease = house.claim(job_id)
        with house.sessions.begin() as session:
            record(session, lease)
        before = snapshot(house)
        for write in ZOMBIE_WRITES:
            with pytest.raises(LeaseLost):  # noqa: SIM117
                with house.sessions.begin() as session:
                    write(session, lease)
        assert snapshot(house) == before

    def test_a_live_lease_is_not_taken_back(self, house: House) -> None:
        job_id = house.seal_job()
        house.claim(job_id)
        with house.sessions.begin() as session:
            assert job_id not in [job.id for job in jobs.reclaim_expired(session, max_attempts=3)]
        assert house.job(job_id).state == "running"

    def test_a_heartbeat_keeps_the_lease(self, house: House) -> None:
        job_id = house.seal_job()
        lease = house.claim(job_id, seconds=0.001)
        with house.sessions.begin() as session:
            heartbeat(session, lease)
        with house.sessions.begin() as session:
            jobs.reclaim_expired(session, max_attempts=3)
        job = house.job(job_id)
        assert (job.state, job.progress) == ("running", {"step": 99})

    def test_after_the_last_attempt_the_job_and_its_requests_fail(
        self, house: House, scene: Scene
    ) -> None:
        request_id = house.ask(scene.first, scene.model, scene.firsts)
        job_id = str(house.request(request_id).job_id)
        for _ in range(2):
            house.claim(job_id)
            with house.sessions.begin() as session:
                expire(session, job_id)
            with house.sessions.begin() as session:
                jobs.reclaim_expired(session, max_attempts=2)
        assert house.job(job_id).state == "failed"
        assert "2 attempts got no further" in str(house.job(job_id).reason)
        assert house.request(request_id).state == "failed"

    def test_an_orderly_return_does_not_count(self, house: House) -> None:
        job_id = house.seal_job()
        for _ in range(5):
            lease = house.claim(job_id)
            with house.sessions.begin() as session:
                jobs.release(session, lease, "its worker was stopped")
        assert (house.job(job_id).state, house.job(job_id).failure) == ("queued", None)


def snapshot(house: House) -> list[Any]:
    """Everything that an attempt could have written."""
    with house.sessions() as session:
        return [
            session.execute(
                select(*table.__table__.columns).order_by(*table.__mapper__.primary_key)
            )
            .mappings()
            .all()
            for table in (Job, Checkpoint, Model, LogRow)
        ]


class TestOutbox:
    """Wake-ups are rows: none is lost between commit and broker, late ones are sent again."""

    def take(self, house: House, republish_seconds: float = 60) -> set[str]:
        """Ids of the jobs that are announced now."""
        with house.sessions.begin() as session:
            before = session.execute(select(Job.id, Job.published_at)).all()
            waiting.take_wakeups(session, republish_seconds=republish_seconds)
            after = session.execute(select(Job.id, Job.published_at)).all()
            return {job_id for job_id, _ in set(after) - set(before)}

    def test_a_job_is_announced_once(self, house: House) -> None:
        job_id = house.seal_job()
        assert job_id in self.take(house)
        assert job_id not in self.take(house)

    def test_a_failed_announcement_is_repeated(self, house: House) -> None:
        job_id = house.seal_job()

        with house.sessions() as session:
            assert waiting.take_wakeups(session, republish_seconds=60)
            session.rollback()
        assert job_id in self.take(house)

    @pytest.mark.parametrize(
        ("waiting", "announced", "again"), [(100, 59, False), (61, 61, True), (600, 290, False)]
    )
    def test_an_announcement_that_nobody_followed_is_repeated_ever_more_rarely(
        self, house: House, waiting: int, announced: int, *, again: bool
    ) -> None:
        """Seconds that the job has been due, and since it was last announced."""
        job_id = house.seal_job()
        with house.sessions.begin() as session:
            job = session.get_one(Job, job_id)
            now = datetime.now(UTC)
            job.due_at = now - timedelta(seconds=waiting)
            job.published_at = now - timedelta(seconds=announced)
        assert (job_id in self.take(house, republish_seconds=60)) is again

    def test_a_claimed_job_is_not_announced(self, house: House) -> None:
        job_id = house.seal_job()
        house.claim(job_id)
        assert job_id not in self.take(house, republish_seconds=0)

    def test_a_job_taken_back_is_announced_again(self, house: House) -> None:
        job_id = house.seal_job()
        self.take(house)
        lease = house.claim(job_id)
        with house.sessions.begin() as session:
            jobs.release(session, lease, "stopped")
        assert job_id in self.take(house)

    def test_two_dispatchers_share_the_work(self, house: House) -> None:
        self.take(house)
        made = {house.seal_job() for _ in range(5)}
        with house.sessions() as first, house.sessions() as second:
            one = waiting.take_wakeups(first, republish_seconds=60)
            two = waiting.take_wakeups(second, republish_seconds=60)
            first.commit()
            second.commit()
        assert len(one) == len(made)
        assert two == []

    def test_a_commit_wakes_the_dispatcher_and_a_rollback_does_not(
        self, house: House, engine: Engine
    ) -> None:
        url, owner = engine.url, house.party(Role.DATA_OWNER)
        with psycopg.connect(
            host=str(url.query["host"]), user=url.username, dbname=url.database, autocommit=True
        ) as listener:
            listener.execute(f"LISTEN {jobs.WAKE_CHANNEL}")
            with house.sessions() as session:
                waiting.enqueue(session, JobKind.SEAL, actor="test", owner_id=owner.id, params={})
                session.rollback()
            assert list(listener.notifies(timeout=0.2)) == []
            job_id = house.seal_job()
            (note,) = listener.notifies(timeout=5, stop_after=1)
            assert note.payload == job_id

    def test_the_next_due_time_is_known(self, house: House) -> None:
        self.take(house)
        owner = house.party(Role.DATA_OWNER)
        with house.sessions.begin() as session:
            waiting.enqueue(
                session,
                JobKind.SEAL,
                actor="test",
                owner_id=owner.id,
                params={},
                delay_seconds=30,
            )
        with house.sessions() as session:
            seconds = waiting.seconds_until_due(session)
        assert seconds is not None
        assert 25 < seconds <= 30


class TestRaces:
    """Two callers at once never both win."""

    def test_the_same_data_is_forgotten_once(self, house: House, scene: Scene) -> None:
        def ask() -> str:
            try:
                return house.ask(scene.first, scene.model, scene.firsts)
            except AlreadyForgotten:
                return "refused"

        results = at_once(6, ask)
        assert results.count("refused") == 5

    def test_a_set_is_sealed_by_one_job(self, house: House, scene: Scene) -> None:
        with house.sessions.begin() as session:
            row = datasets.create(session, scene.first, "raced")
            shard = datasets.StoredShard("a.tar", "sha256:1", 1, 1, "key")
            datasets.add_shard(session, scene.first, row.id, shard)

        def seal() -> bool:
            with house.sessions.begin() as session:
                return datasets.start_sealing(session, scene.first, row.id)[1] is not None

        assert at_once(6, seal).count(True) == 1
        with house.sessions() as session:
            assert session.get_one(Dataset, row.id).state == "sealing"

    def test_a_transition_that_its_life_forbids_changes_nothing(
        self, house: House, scene: Scene
    ) -> None:
        before = states_logged(house, scene.firsts)
        with pytest.raises(StateChanged, match="is sealed; it cannot become open"):  # noqa: SIM117
            with house.sessions.begin() as session:
                move(session, session.get_one(Dataset, scene.firsts), "open")
        assert states_logged(house, scene.firsts) == before


def test_a_manual_policy_does_not_promote(house: House) -> None:
    owner = house.party(Role.MODEL_OWNER)
    own, more = house.sealed(owner), house.sealed(owner)
    model = house.model(owner, promotion="manual")
    first = house.pretrained(owner, model, [own, more])
    house.pretrained(owner, model, [own])
    assert house.head(model) == first
