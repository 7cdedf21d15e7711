"""Whose turn it is: kinds, waiting, fairness among owners, priority; and that no job is given out twice."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from tests.registry.conftest import LEASE_SECONDS, House, Scene
from tests.registry.test_jobs import at_once

from expunge.registry import jobs, lifecycles, waiting
from expunge.registry.database import Sessions
from expunge.registry.errors import Conflict
from expunge.registry.tables import Job, JobKind, Party, Role

HOUR = waiting.SECONDS_PER_RANK
EVERY_KIND = tuple(JobKind)
THREADS = 8
MANY_JOBS = 40
CROWD = 2 * waiting.CANDIDATES
"""More workers at once than one claim looks at jobs."""


@pytest.fixture
def house(session_factory: Sessions) -> House:
    """One whose queue is empty."""
    with session_factory.begin() as session:
        open_states = [s for s in lifecycles.JOB if not lifecycles.is_final(lifecycles.JOB, s)]
        for job in session.scalars(select(Job).where(Job.state.in_(open_states))):
            jobs.cancel(session, job, actor="test", reason="another test begins")
    return House(session_factory)


@pytest.fixture
def owner(house: House) -> Party:
    return house.party(Role.MODEL_OWNER)


@pytest.fixture
def other(house: House) -> Party:
    return house.party(Role.MODEL_OWNER)


def take(house: House, kinds: Collection[JobKind] = EVERY_KIND) -> jobs.Lease | None:
    return waiting.claim_next(house.sessions, kinds, worker="tester", lease_seconds=LEASE_SECONDS)


def order(house: House, kinds: Collection[JobKind] = EVERY_KIND) -> list[str]:
    """Ids of all jobs that wait, as they are taken by workers that do not finish any."""
    taken = []
    while lease := take(house, kinds):
        taken.append(lease.job_id)
    return taken


def finish(house: House, lease: jobs.Lease) -> None:
    with house.sessions.begin() as session:
        jobs.succeed(session, lease)


def let_wait(house: House, job_id: str, seconds: float) -> None:
    """As if the job had become due so long ago."""
    with house.sessions.begin() as session:
        session.get_one(Job, job_id).due_at = datetime.now(UTC) - timedelta(seconds=seconds)


def prioritise(house: House, owner: Party, job_id: str, priority: int) -> None:
    with house.sessions.begin() as session:
        waiting.prioritise(session, owner.id, session.get_one(Job, job_id), priority)


class TestKinds:
    """Removals before pre-training before comparisons, unless these have waited long enough."""

    def test_removals_go_before_pretraining_before_comparisons(self, house: House) -> None:
        kinds = (JobKind.COMPARE, JobKind.PRETRAIN, JobKind.UNLEARN)
        made = [house.waiting_job(kind) for kind in kinds]
        assert order(house) == made[::-1]

    def test_audits_go_before_what_came_in(self, house: House) -> None:
        seal, verify = house.waiting_job(JobKind.SEAL), house.waiting_job(JobKind.VERIFY)
        audit = house.waiting_job(JobKind.AUDIT)
        assert order(house) == [audit, seal, verify]

    @pytest.mark.parametrize(
        ("waited", "comparison_first"),
        [(0, False), (2 * HOUR - 60, False), (2 * HOUR, True), (9 * HOUR, True)],
    )
    def test_an_hour_of_waiting_is_worth_a_rank(
        self, house: House, waited: float, *, comparison_first: bool
    ) -> None:
        compare = house.waiting_job(JobKind.COMPARE)
        removal = house.waiting_job(JobKind.UNLEARN)
        let_wait(house, compare, waited)
        expected = [compare, removal] if comparison_first else [removal, compare]
        assert order(house) == expected

    def test_waiting_long_outweighs_fairness(
        self, house: House, owner: Party, other: Party
    ) -> None:
        patient, fresh = (house.waiting_job(JobKind.PRETRAIN, each) for each in (owner, other))
        house.claim(house.waiting_job(JobKind.PRETRAIN, owner))
        let_wait(house, patient, HOUR)
        assert order(house) == [patient, fresh]

    def test_the_batching_window_is_no_waiting(self, house: House, owner: Party) -> None:
        with house.sessions.begin() as session:
            later = waiting.enqueue(
                session,
                JobKind.UNLEARN,
                actor="test",
                owner_id=owner.id,
                params={},
                delay_seconds=5,
            ).id
        assert order(house) == []
        let_wait(house, later, 0)
        assert order(house) == [later]

    def test_a_worker_takes_only_its_kinds(self, house: House) -> None:
        house.waiting_job(JobKind.UNLEARN)
        seal = house.waiting_job(JobKind.SEAL)
        assert order(house, [JobKind.SEAL, JobKind.AUDIT]) == [seal]


class TestOwners:
    """Nobody's many jobs keep another's few waiting."""

    def test_the_owner_with_fewer_running_jobs_goes_first(
        self, house: House, owner: Party, other: Party
    ) -> None:
        many = [house.waiting_job(JobKind.PRETRAIN, owner) for _ in range(3)]
        few = [house.waiting_job(JobKind.PRETRAIN, other) for _ in range(2)]
        assert order(house) == [many[0], few[0], many[1], few[1], many[2]]

    def test_then_the_one_that_was_never_served(
        self, house: House, owner: Party, other: Party
    ) -> None:
        finish(house, house.claim(house.waiting_job(JobKind.PRETRAIN, owner)))
        older = house.waiting_job(JobKind.PRETRAIN, owner)
        newer = house.waiting_job(JobKind.PRETRAIN, other)
        assert order(house) == [newer, older]

    def test_then_the_one_that_was_served_longest_ago(
        self, house: House, owner: Party, other: Party
    ) -> None:
        for each in (other, owner):
            finish(house, house.claim(house.waiting_job(JobKind.PRETRAIN, each)))
        older = house.waiting_job(JobKind.PRETRAIN, owner)
        newer = house.waiting_job(JobKind.PRETRAIN, other)
        assert order(house) == [newer, older]

    def test_one_worker_serves_two_owners_in_turn(
        self, house: House, owner: Party, other: Party
    ) -> None:
        many = [house.waiting_job(JobKind.PRETRAIN, owner) for _ in range(3)]
        few = [house.waiting_job(JobKind.PRETRAIN, other) for _ in range(2)]
        served = []
        while lease := take(house):
            served.append(lease.job_id)
            finish(house, lease)
        assert served == [many[0], few[0], many[1], few[1], many[2]]

    def test_what_other_workers_do_for_an_owner_does_not_count(
        self, house: House, owner: Party, other: Party
    ) -> None:
        house.claim(house.waiting_job(JobKind.SEAL, owner))
        older = house.waiting_job(JobKind.PRETRAIN, owner)
        newer = house.waiting_job(JobKind.PRETRAIN, other)
        assert order(house, [JobKind.PRETRAIN]) == [older, newer]

    def test_of_one_owner_the_oldest_goes_first(self, house: House, owner: Party) -> None:
        made = [house.waiting_job(JobKind.PRETRAIN, owner) for _ in range(4)]
        assert order(house) == made


class TestPriority:
    """An owner may sort their own jobs, and nobody else's."""

    def test_more_goes_first(self, house: House, owner: Party) -> None:
        low, high, middle = (house.waiting_job(JobKind.PRETRAIN, owner) for _ in range(3))
        prioritise(house, owner, high, waiting.MAX_PRIORITY)
        prioritise(house, owner, middle, 1)
        assert order(house) == [high, middle, low]

    def test_it_does_not_count_against_other_owners(
        self, house: House, owner: Party, other: Party
    ) -> None:
        first = house.waiting_job(JobKind.PRETRAIN, owner)
        loud = [house.waiting_job(JobKind.PRETRAIN, other) for _ in range(2)]
        for each in loud:
            prioritise(house, other, each, waiting.MAX_PRIORITY)
        finish(house, house.claim(house.waiting_job(JobKind.PRETRAIN, other)))
        assert order(house) == [first, *loud]

    def test_it_does_not_make_a_comparison_a_removal(self, house: House, owner: Party) -> None:
        compare = house.waiting_job(JobKind.COMPARE, owner)
        prioritise(house, owner, compare, waiting.MAX_PRIORITY)
        removal = house.waiting_job(JobKind.UNLEARN, owner)
        assert order(house) == [removal, compare]

    def test_a_running_job_has_none(self, house: House, owner: Party) -> None:
        job_id = house.waiting_job(JobKind.PRETRAIN, owner)
        house.claim(job_id)
        with pytest.raises(Conflict, match="only a waiting job has a turn"):
            prioritise(house, owner, job_id, 1)
        assert house.job(job_id).priority == 0


class TestModels:
    """Training jobs of one model take turns; nothing else waits for them."""

    def removals(self, house: House, scene: Scene) -> list[str]:
        """Two of one model: other parameters make another job."""
        return [
            str(house.request(house.ask(owner, scene.model, dataset, {"epochs": epochs})).job_id)
            for owner, dataset, epochs in (
                (scene.first, scene.firsts, 1),
                (scene.second, scene.seconds, 2),
            )
        ]

    def test_a_busy_model_does_not_hold_up_the_queue(self, house: House, scene: Scene) -> None:
        running, blocked = self.removals(house, scene)
        house.claim(running)
        compare = house.waiting_job(JobKind.COMPARE, scene.model_owner, model_id=scene.model)
        assert order(house) == [compare]
        assert house.job(blocked).state == "queued"

    def test_a_job_given_back_keeps_its_place(self, house: House, scene: Scene) -> None:
        """What it has done would be lost if another one changed the head first."""
        first, _ = self.removals(house, scene)
        for _ in range(2):
            lease = house.claim(first)
            with house.sessions.begin() as session:
                jobs.release(session, lease, "its worker was stopped")
        assert order(house) == [first]


class TestManyWorkers:
    """Each job has one executor, and no worker leaves while there is work."""

    def test_each_job_is_given_out_once(self, house: House) -> None:
        owners = [house.party(Role.MODEL_OWNER) for _ in range(5)]
        made = [
            house.waiting_job(EVERY_KIND[number % len(EVERY_KIND)], owners[number % len(owners)])
            for number in range(MANY_JOBS)
        ]
        taken = [job_id for each in at_once(THREADS, lambda: order(house)) for job_id in each]
        assert len(taken) == MANY_JOBS
        assert set(taken) == set(made)
        assert {house.job(each).attempt for each in made} == {1}

    def test_many_at_once_all_find_one(self, house: House) -> None:
        made = {house.seal_job() for _ in range(CROWD)}
        leases = at_once(CROWD, lambda: take(house))
        assert None not in leases
        assert {lease.job_id for lease in leases} == made

    def test_two_at_once_share_what_waits(self, house: House) -> None:
        for _ in range(10):
            made = {house.seal_job() for _ in range(2)}
            assert {lease.job_id for lease in at_once(2, lambda: take(house))} == made
