"""Audits as the interactive worker computes them."""

import csv
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine
from tests.worker.lab import Lab, World, images

from expunge.registry import audits, datasets, models
from expunge.registry.objects import read_bytes
from expunge.registry.tables import Audit, Party
from expunge.worker import pictures


@pytest.fixture(scope="module")
def lab(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(engine, tmp_path_factory.mktemp("audits"))


@pytest.fixture(scope="module")
def trained(lab: Lab) -> World:
    """As elsewhere, but the second owner has two data sets whose samples have the same keys."""
    world = World(lab)
    more = lab.sealed(world.second_owner, "more", images("second", 12, 9))
    with lab.sessions.begin() as session:
        datasets.grant(session, world.second_owner, more, world.model_owner.id)
    lab.runner.run(lab.pretraining(world.model_owner, world.model, [*world.training_data, more]))
    world.seconds = [world.second, more]
    return world


@pytest.fixture(scope="module")
def unlearned(lab: Lab, trained: World) -> dict[str, str]:
    """Both owners' requests carried out, one after the other: owner's name → request."""
    with lab.sessions.begin() as session:
        models.set_control(session, trained.model_owner, trained.model, trained.control)
    found = {}
    for owner, chosen in (
        (trained.first_owner, [trained.first]),
        (trained.second_owner, trained.seconds),
    ):
        request = lab.request(owner, trained.model, chosen)
        lab.runner.run(lab.job_of(request).id)
        found[owner.name] = request
    return found


def audit(lab: Lab, owner: Party, request: str, **settings: int) -> Audit:
    with lab.sessions.begin() as session:
        row = audits.create(
            session,
            owner,
            request_id=request,
            dataset_ids=None,
            settings={"views": 4, "seed": 0, "matrix_size": 8} | settings,
        )
    lab.runner.run(row.job_id)
    with lab.sessions() as session:
        found = session.get_one(Audit, row.id)
        assert found.job.state == "succeeded", found.job.reason
        return found


def strings(value: Any) -> set[str]:
    match value:
        case dict():
            return set(value) | {s for each in value.values() for s in strings(each)}
        case list():
            return {s for each in value for s in strings(each)}
        case str():
            return {value}
    return set()


def test_an_audit_holds_the_owners_samples_and_nothing_of_others(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = audit(lab, trained.first_owner, unlearned["first owner"])
    assert found.report is not None
    assert (found.report["n_own"], found.report["n_control"]) == (12, 12)
    named = strings(found.report)
    assert "first-000" in named
    assert not [each for each in named if each.startswith(("second-", "own-", "control-"))]
    assert set(found.report["levels"]) == {"encoder", "projector"}


def test_repeating_an_audit_gives_the_same_numbers_and_pictures(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    first = audit(lab, trained.first_owner, unlearned["first owner"])
    again = audit(lab, trained.first_owner, unlearned["first owner"])
    other = audit(lab, trained.first_owner, unlearned["first owner"], seed=1)
    assert first.report == again.report
    assert first.objects == again.objects
    assert first.report != other.report


def test_samples_of_two_data_sets_with_the_same_keys_are_told_apart(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = audit(lab, trained.second_owner, unlearned["second owner"])
    assert found.report is not None
    assert found.report["n_own"] == 24
    named = set(found.report["levels"]["encoder"]["forgetting_score"]["per_sample"])
    assert named == {f"{each}/second-{n:03d}" for each in trained.seconds for n in range(12)}


def test_matrices_are_stored_as_array_table_and_picture_that_agree(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = audit(lab, trained.second_owner, unlearned["second owner"], matrix_size=5)
    assert found.objects is not None
    assert found.report is not None
    for level in ("encoder", "projector"):
        arrays = {}
        for which, formats in found.objects[level].items():
            stored = {suffix: read_bytes(lab.store, key) for suffix, key in formats.items()}
            arrays[which] = np.load(io.BytesIO(stored["npy"]), allow_pickle=False)
            header, *rows = csv.reader(io.StringIO(stored["csv"].decode()))
            assert header[1:] == [row[0] for row in rows] == found.report["matrix_keys"]
            table = np.array([[float(value) for value in row[1:]] for row in rows])
            np.testing.assert_allclose(table, arrays[which], atol=1e-6)
            with Image.open(io.BytesIO(stored["png"])) as picture:
                assert min(picture.size) > 400
        assert arrays["gap"].shape == (5, 5)
        np.testing.assert_allclose(arrays["gap"], arrays["before"] - arrays["after"], atol=1e-6)


def test_a_picture_shows_large_values_brighter() -> None:
    matrix = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    drawn = pictures.render("before", "encoder", {"before": matrix, "after": matrix}, ["a", "b"])
    with Image.open(io.BytesIO(drawn["png"])) as picture:
        grey = np.asarray(picture.convert("L"), dtype=float)
    height, width = grey.shape
    assert grey[height // 3, width // 3] > grey[height // 3, width // 2] + 50
