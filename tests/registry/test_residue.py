"""What is left of a request's data, as its owner may know it."""

from datetime import timedelta

from sqlalchemy import select, update
from tests.registry.conftest import House, Scene, weights

from expunge.registry import checkpoints, models, requests, residue
from expunge.registry.residue import Residue
from expunge.registry.tables import Audit, Checkpoint, Comparison, Job, JobKind, Request


def of(house: House, request_id: str) -> list[Residue]:
    with house.sessions() as session:
        return residue.of(session, session.get_one(Request, request_id))


def some(found: list[Residue], *what: str) -> list[Residue]:
    return [each for each in found if each.what in what]


def unlearned(house: House, request_id: str) -> str:
    lease = house.claim(str(house.request(request_id).job_id))
    with house.sessions.begin() as session:
        return checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0}).id


def digest_of(house: House, checkpoint_id: str) -> str:
    with house.sessions() as session:
        return session.get_one(Checkpoint, checkpoint_id).digest


def test_while_the_request_waits_the_head_holds_its_data(house: House, scene: Scene) -> None:
    request = house.ask(scene.first, scene.model, scene.firsts)
    found = of(house, request)
    assert some(found, "checkpoint") == [
        Residue(
            "checkpoint",
            "object store",
            "in force",
            "the request is not carried out yet",
            condition="a head without the data comes into force",
        )
    ]
    [samples] = some(found, "raw-samples")
    assert (samples.id, samples.digest, samples.state) == (scene.firsts, "sha256:0", "kept")
    assert {each.what for each in found} == {"checkpoint", "raw-samples", "record", "outside"}


def test_of_a_withdrawn_request_the_model_goes_on_holding_the_data(
    house: House, scene: Scene
) -> None:
    request = house.ask(scene.first, scene.model, scene.firsts)
    with house.sessions.begin() as session:
        requests.withdraw(session, scene.first, request)
    [head] = some(of(house, request), "checkpoint")
    assert head.why == "the request is cancelled: the model goes on holding the data"


def test_once_in_force_the_base_is_named_with_the_day_of_its_end(
    house: House, scene: Scene
) -> None:
    request = house.ask(scene.first, scene.model, scene.firsts)
    unlearned(house, request)
    effective = house.request(request).effective_at
    assert effective is not None
    [base] = some(of(house, request), "checkpoint")
    assert (base.id, base.digest) == (scene.base, digest_of(house, scene.base))
    assert base.until == effective + timedelta(days=30)
    assert (base.state, base.condition) == ("kept", None)
    with house.sessions.begin() as session:
        models.change_policy(session, scene.model_owner, scene.model, {"keep_days": 3})
    [base] = some(of(house, request), "checkpoint")
    assert base.until == effective + timedelta(days=3)


def test_a_result_that_waits_is_told_from_one_in_force(house: House, scene: Scene) -> None:
    with house.sessions.begin() as session:
        models.change_policy(session, scene.model_owner, scene.model, {"promotion": "manual"})
    request = house.ask(scene.first, scene.model, scene.firsts)
    unlearned(house, request)
    [head] = some(of(house, request), "checkpoint")
    assert (head.id, head.state) == (scene.base, "in force")
    assert head.why == "the result waits to be put in force"


def test_checkpoints_that_the_owner_does_not_know_are_counted_only(
    house: House, scene: Scene
) -> None:
    """The second owner's request made one of them; neither its id nor that owner is told."""
    unlearned(house, house.ask(scene.second, scene.model, scene.seconds))
    request = house.ask(scene.first, scene.model, scene.firsts)
    result = unlearned(house, request)
    assert result == house.head(scene.model)
    base = house.job(str(house.request(request).job_id)).base_checkpoint_id
    named, other = some(of(house, request), "checkpoint")
    assert sorted([str(named.id), str(other.id)]) == sorted([str(base), "None"])
    told = str([each.to_dict() for each in of(house, request)])
    assert scene.base not in told
    assert scene.seconds not in told
    assert scene.second.id not in told


def test_working_copies_and_snapshots_of_jobs_that_run(house: House, scene: Scene) -> None:
    request = house.ask(scene.first, scene.model, scene.firsts)
    lease = house.claim(str(house.request(request).job_id))
    with house.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == lease.job_id).values(snapshot_key="k"))
    found = of(house, request)
    assert [each.where for each in some(found, "working-copy", "snapshot")] == [
        "worker disk",
        "object store",
    ]
    with house.sessions.begin() as session:
        checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
    assert some(of(house, request), "working-copy", "snapshot") == []


def test_weights_that_a_comparison_trained_may_be_on_a_worker(house: House, scene: Scene) -> None:
    job = house.waiting_job(JobKind.COMPARE, scene.model_owner, model_id=scene.model)
    house.claim(job)
    with house.sessions.begin() as session:
        settings = {"dataset_ids": [scene.seconds], "with_retrain": True}
        session.add(
            Comparison(
                id=f"cmp_{job}",
                owner_id=scene.model_owner.id,
                model_id=scene.model,
                job_id=job,
                checkpoint_id=scene.base,
                settings=settings,
            )
        )
    first = house.ask(scene.first, scene.model, scene.firsts)
    second = house.ask(scene.second, scene.model, scene.seconds)
    assert [each.count for each in some(of(house, first), "retrain-weights")] == [1]
    assert some(of(house, second), "retrain-weights") == []


def test_audits_are_named_to_their_owner_and_counted_to_the_models(
    house: House, scene: Scene
) -> None:
    request = house.ask(scene.first, scene.model, scene.firsts)
    after = unlearned(house, request)
    for _ in range(2):
        job = house.waiting_job(JobKind.AUDIT, scene.first)
        with house.sessions.begin() as session:
            session.add(
                Audit(
                    id=f"aud_{job}",
                    request_id=request,
                    owner_id=scene.first.id,
                    job_id=job,
                    before_checkpoint_id=scene.base,
                    after_checkpoint_id=after,
                    objects={"bundle": "k"},
                )
            )
    with house.sessions() as session:
        made = select(Audit.id).where(Audit.request_id == request, Audit.objects.is_not(None))
        ids = session.scalars(made).all()
    found = of(house, request)
    assert [each.id for each in some(found, "audit")] == sorted(ids)
    [counted] = some(residue.for_others(found), "audit")
    assert (counted.id, counted.count) == (None, 2)
