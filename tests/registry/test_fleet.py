"""Workers that say what they offer, and models that ask for some of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import delete, func, select, update
from tests.registry.conftest import LEASE_SECONDS, House

from expunge.registry import fleet, jobs, lifecycles, models, policies, waiting
from expunge.registry.database import Sessions
from expunge.registry.policies import Policy
from expunge.registry.tables import Job, JobKind, Model, Party, Role, Worker

TRAINING = [JobKind.PRETRAIN, JobKind.UNLEARN, JobKind.COMPARE]
LONG_AGO = timedelta(hours=25)


@pytest.fixture
def house(session_factory: Sessions) -> House:
    """One without workers whose queue is empty."""
    with session_factory.begin() as session:
        session.execute(delete(Worker))
        open_states = [s for s in lifecycles.JOB if not lifecycles.is_final(lifecycles.JOB, s)]
        for job in session.scalars(select(Job).where(Job.state.in_(open_states))):
            jobs.cancel(session, job, actor="test", reason="another test begins")
    return House(session_factory)


@pytest.fixture
def owner(house: House) -> Party:
    return house.party(Role.MODEL_OWNER)


def asking(house: House, owner: Party, *labels: str) -> str:
    """A queued pre-training of a model whose policy asks for these labels."""
    model = house.model(owner)
    change_policy(house, owner, model, worker_labels=labels)
    return house.pretraining(owner, model, [house.sealed(owner)])


def change_policy(house: House, owner: Party, model_id: str, **change: Any) -> None:
    with house.sessions.begin() as session:
        models.change_policy(session, owner, model_id, change)


def take(house: House, *labels: str) -> str | None:
    """The job that a worker with these labels gets."""
    lease = waiting.claim_next(
        house.sessions, TRAINING, worker="tester", lease_seconds=LEASE_SECONDS, labels=labels
    )
    return None if lease is None else lease.job_id


def presence(name: str, *labels: str, **other: Any) -> fleet.Presence:
    said: dict[str, Any] = {
        "role": "train",
        "kinds": [kind.value for kind in TRAINING],
        "host": "here",
        "pid": 1,
        "version": "1",
        "device": "cpu",
        "device_name": None,
        "device_id": None,
        "memory_bytes": None,
        "labels": list(labels),
        "started_at": datetime.now(UTC),
    }
    return fleet.Presence(name=name, **said | other)


def enter(house: House, *present: fleet.Presence, stopping: bool = False) -> None:
    with house.sessions.begin() as session:
        for each in present:
            fleet.beat(session, each, stopping=stopping)


def silent_for(house: House, name: str, how_long: timedelta) -> None:
    with house.sessions.begin() as session:
        heard = func.now() - how_long
        session.execute(update(Worker).where(Worker.name == name).values(last_seen_at=heard))


def waiting_for(house: House, job_id: str) -> str | None:
    with house.sessions() as session:
        return fleet.unserved(session, [session.get_one(Job, job_id)]).get(job_id)


class TestClaims:
    """Who gets which job."""

    def test_a_worker_needs_all_the_labels_that_a_model_asks_for(
        self, house: House, owner: Party
    ) -> None:
        job_id = asking(house, owner, "a100", "cuda")
        assert take(house) is None
        assert take(house, "cuda", "other") is None
        assert take(house, "other", "cuda", "a100") == job_id

    def test_what_asks_for_nothing_is_done_by_everybody_in_the_meantime(
        self, house: House, owner: Party
    ) -> None:
        asking(house, owner, "a100")
        plain = asking(house, owner)
        assert take(house) == plain

    def test_a_change_of_the_policy_counts_for_jobs_that_wait(
        self, house: House, owner: Party
    ) -> None:
        job_id = asking(house, owner, "no-such-thing")
        assert take(house, "cpu") is None
        change_policy(house, owner, str(house.job(job_id).model_id), worker_labels=["cpu"])
        assert take(house, "cpu") == job_id

    def test_only_training_removals_and_comparisons_need_them(
        self, house: House, owner: Party
    ) -> None:
        model = house.model(owner)
        change_policy(house, owner, model, worker_labels=["a100"])
        audit = house.waiting_job(JobKind.AUDIT, model_id=model)
        lease = waiting.claim_next(
            house.sessions, [JobKind.AUDIT], worker="tester", lease_seconds=LEASE_SECONDS
        )
        assert lease is not None
        assert lease.job_id == audit


class TestUnserved:
    """What keeps a job from being done at all."""

    def test_without_a_worker_every_kind_waits_for_one(self, house: House, owner: Party) -> None:
        job_id = asking(house, owner)
        assert waiting_for(house, job_id) == "no live worker does jobs of the kind pretrain"
        enter(house, presence("w", kinds=["audit"]))
        assert waiting_for(house, job_id) == "no live worker does jobs of the kind pretrain"
        enter(house, presence("w"))
        assert waiting_for(house, job_id) is None

    def test_labels_that_no_one_worker_has_are_named(self, house: House, owner: Party) -> None:
        job_id, other = asking(house, owner, "cuda", "a100"), asking(house, owner, "a100")
        enter(house, presence("first", "cuda"), presence("second", "other"))
        assert waiting_for(house, job_id) == "no live worker has the labels a100, cuda"
        assert waiting_for(house, other) == "no live worker has the label a100"
        enter(house, presence("second", "a100"))
        assert waiting_for(house, other) is None
        assert waiting_for(house, job_id) is not None, "together they have them, none has both"

    def test_who_is_gone_or_stops_does_nothing_any_more(self, house: House, owner: Party) -> None:
        job_id = asking(house, owner)
        enter(house, presence("w"), stopping=True)
        assert waiting_for(house, job_id) is not None
        enter(house, presence("w"))
        silent_for(house, "w", 2 * fleet.GONE_AFTER)
        assert waiting_for(house, job_id) is not None

    def test_they_are_counted_by_reason(self, house: House, owner: Party) -> None:
        enter(house, presence("w"))
        for labels in ((), ("a100",), ("a100",)):
            asking(house, owner, *labels)
        house.seal_job()
        with house.sessions() as session:
            assert fleet.all_unserved(session) == {
                "no live worker has the label a100": 2,
                "no live worker does jobs of the kind seal": 1,
            }


def test_queues_tell_what_waits_what_comes_later_and_what_runs(house: House, owner: Party) -> None:
    running, _, old = (house.seal_job(owner) for _ in range(3))
    house.waiting_job(JobKind.SEAL, owner, delay_seconds=3600)
    house.claim(running)
    with house.sessions.begin() as session:
        session.get_one(Job, old).due_at = datetime.now(UTC) - timedelta(hours=1)
    with house.sessions() as session:
        found = {each.kind: each for each in fleet.queues(session)}
    assert found.keys() == set(JobKind)
    seal = found[JobKind.SEAL]
    assert (seal.waiting, seal.later, seal.running) == (2, 1, 1)
    assert seal.oldest_seconds == pytest.approx(3600, abs=120)
    assert found[JobKind.UNLEARN] == fleet.Queue(JobKind.UNLEARN, 0, 0, 0, None)


def test_two_live_workers_of_a_role_on_one_gpu_are_told_of_each_other(house: House) -> None:
    gpu = {"device": "cuda:0", "device_id": "GPU-1"}
    enter(
        house,
        presence("first", **gpu),
        presence("second", **gpu),
        presence("interactive", role="interactive", **gpu),
        presence("other", device="cuda:1", device_id="GPU-2"),
        presence("on a CPU"),
        presence("on the same CPU"),
        presence("gone", **gpu),
    )
    silent_for(house, "gone", 2 * fleet.GONE_AFTER)
    with house.sessions() as session:
        found = fleet.sharing(fleet.workers(session), fleet.now(session))
    assert found == {"first": ["second"], "second": ["first"]}


def test_who_ends_in_good_order_or_is_silent_for_a_day_is_struck_out(house: House) -> None:
    enter(house, *map(presence, ("ended", "silent", "quiet", "alive")))
    silent_for(house, "silent", LONG_AGO)
    silent_for(house, "quiet", 2 * fleet.GONE_AFTER)
    with house.sessions.begin() as session:
        fleet.leave(session, "ended")
        fleet.forget_gone(session)
        assert [each.name for each in fleet.workers(session)] == ["alive", "quiet"]


@pytest.mark.parametrize("label", ["", "GPU", "a b", "-gpu", "gpu-", "a,b", "ä", "x" * 41])
def test_labels_are_plain_words(label: str) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({"worker_labels": [label]})


def test_a_policy_has_each_label_once_and_not_too_many() -> None:
    assert Policy.model_validate({"worker_labels": ["b", "a", "b"]}).worker_labels == ("a", "b")
    with pytest.raises(ValidationError):
        Policy.model_validate({"worker_labels": [f"label-{n}" for n in range(17)]})


def test_policies_are_read_across_versions(house: House, owner: Party) -> None:
    model_id = house.model(owner)
    with house.sessions() as session:
        stored = session.get_one(Model, model_id).policy
    assert "worker_labels" not in stored, "a version that knows none reads it"
    assert policies.of(stored | {"of_a_later_version": 1}) == policies.of(stored)
