"""Comparisons in the registry: which data they may use, before and at the start, and what they never touch."""

import pytest
from sqlalchemy.orm import Session
from tests.registry.conftest import House, Scene

from expunge.registry import checkpoints, comparisons, datasets, jobs, models, visibility
from expunge.registry.comparisons import Plan
from expunge.registry.errors import AlreadyForgotten, Conflict, NotFound
from expunge.registry.tables import Comparison, Model, Role
from expunge.registry.transitions import LeaseLost
from expunge.unlearning.candidates import CandidateSpec

PLAN = Plan(methods=[CandidateSpec(method="fine_tune")])


@pytest.fixture
def comparison(scene: Scene) -> Comparison:
    """Of forgetting the first owner's data."""
    control = scene.house.sealed(scene.model_owner)
    with scene.house.sessions.begin() as session:
        models.set_control(session, scene.model_owner, scene.model, control)
        return comparisons.create(
            session,
            scene.model_owner,
            model_id=scene.model,
            dataset_ids=[scene.firsts],
            plan=PLAN,
        )


def kept(session: Session, scene: Scene, comparison: Comparison) -> list[str]:
    """What the worker is told when it starts."""
    model = session.get_one(Model, scene.model)
    return comparisons.retained(session, model, comparison.checkpoint_id, [scene.firsts])


def unlearn(scene: Scene, request_id: str) -> None:
    lease = scene.house.claim(str(scene.house.request(request_id).job_id))
    with scene.house.sessions.begin() as session:
        weights = checkpoints.StoredWeights("sha256:1", "1", 1, "sha256:1", "1")
        checkpoints.record_unlearned(session, lease, weights, {"seconds": 1.0})


def test_it_runs_beside_a_removal_of_the_same_model_and_changes_nothing(
    house: House, scene: Scene, comparison: Comparison
) -> None:
    lease = house.claim(comparison.job_id)
    removal = house.ask(scene.second, scene.model, scene.seconds)
    unlearn(scene, removal)
    head = house.head(scene.model)
    with house.sessions.begin() as session:
        comparisons.record(session, lease, {"rows": []}, {"table.csv": "key"})
    with house.sessions() as session:
        row = session.get_one(Comparison, comparison.id)
        assert (row.job.state, row.result, row.objects) == (
            "succeeded",
            {"rows": []},
            {"table.csv": "key"},
        )
        assert row.checkpoint_id == scene.base
    assert house.head(scene.model) == head != scene.base


def test_an_attempt_that_lost_its_lease_records_nothing(
    house: House, comparison: Comparison
) -> None:
    lease = house.claim(comparison.job_id)
    with house.sessions.begin() as session:
        jobs.release(session, lease, "the worker was stopped")
    house.claim(comparison.job_id)
    with house.sessions.begin() as session, pytest.raises(LeaseLost):
        comparisons.record(session, lease, {}, {})


def test_at_the_start_all_but_what_is_forgotten_is_retained(
    house: House, scene: Scene, comparison: Comparison
) -> None:
    with house.sessions() as session:
        assert kept(session, scene, comparison) == sorted([scene.own, scene.seconds])


def test_a_grant_withdrawn_meanwhile_stops_it_unless_it_is_about_that_data(
    house: House, scene: Scene, comparison: Comparison
) -> None:
    with house.sessions.begin() as session:
        datasets.withdraw_grant(session, scene.first, scene.firsts, scene.model_owner.id)
    with house.sessions() as session:
        assert scene.seconds in kept(session, scene, comparison)
    with house.sessions.begin() as session:
        datasets.withdraw_grant(session, scene.second, scene.seconds, scene.model_owner.id)
    with house.sessions() as session, pytest.raises(Conflict, match=scene.seconds):
        kept(session, scene, comparison)


def test_retained_data_that_is_to_be_forgotten_meanwhile_stops_it(
    house: House, scene: Scene, comparison: Comparison
) -> None:
    removal = house.ask(scene.second, scene.model, scene.seconds)
    with house.sessions() as session, pytest.raises(Conflict, match=scene.seconds):
        kept(session, scene, comparison)
    unlearn(scene, removal)
    with house.sessions() as session, pytest.raises(Conflict, match=scene.seconds):
        kept(session, scene, comparison)


def test_what_the_head_has_forgotten_meanwhile_is_not_trained_on_again(
    house: House, scene: Scene, comparison: Comparison
) -> None:
    removal = house.ask(scene.first, scene.model, scene.firsts)
    with house.sessions() as session:
        assert kept(session, scene, comparison), "asked for, but still retained"
    unlearn(scene, removal)
    with house.sessions() as session, pytest.raises(AlreadyForgotten, match=scene.firsts):
        kept(session, scene, comparison)


def test_control_images_whose_grant_was_withdrawn_are_no_test_set(
    house: House, scene: Scene, comparison: Comparison
) -> None:
    control = house.sealed(scene.second)
    with house.sessions.begin() as session:
        datasets.grant(session, scene.second, control, scene.model_owner.id)
        models.set_control(session, scene.model_owner, scene.model, control)
        comparisons.check_test_set(session, session.get_one(Model, scene.model), control)
        datasets.withdraw_grant(session, scene.second, control, scene.model_owner.id)
    with house.sessions.begin() as session, pytest.raises(Conflict, match=control):
        comparisons.create(
            session,
            scene.model_owner,
            model_id=scene.model,
            dataset_ids=[scene.firsts],
            plan=PLAN,
        )


def test_only_the_owner_finds_it(house: House, comparison: Comparison) -> None:
    other = house.party(Role.MODEL_OWNER)
    with house.sessions() as session, pytest.raises(NotFound, match=comparison.id):
        visibility.one(session, visibility.comparisons(other), comparison.id)
