"""The main job over HTTP with the real worker: train, two owners ask, unlearn, audit; and who sees what of it."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.api.conftest import User, images, problem_of

pytestmark = pytest.mark.usefixtures("worker")

TRAINING = {"epochs": 1, "batch_size": 16}
OWN, MINE, THEIRS = 24, 5, 7


@dataclass
class Story:
    """What came of it."""

    model: str
    mine: str
    theirs: str
    request: dict[str, Any]
    other_request: dict[str, Any]
    audit: dict[str, Any]


def followed(user: User, path: str) -> dict[str, Any]:
    """The resource after its event stream has ended."""
    with user.http.stream("GET", f"{path}/events") as answer:
        assert any(line == "event: end" for line in answer.iter_lines())
    final: dict[str, Any] = user.get(path).json()
    return final


@pytest.fixture(scope="module")
def story(model_owner: User, data_owner: User, other_owner: User) -> Story:
    own = model_owner.sealed(images("own", OWN, seed=1))
    control = model_owner.sealed(images("control", 9, seed=2))
    mine = data_owner.sealed(images("mine", MINE, seed=3))
    theirs = other_owner.sealed(images("theirs", THEIRS, seed=4))
    for owner, dataset in ((data_owner, mine), (other_owner, theirs)):
        owner.post(f"/datasets/{dataset}/grants", {"party_id": model_owner.id})
    model = model_owner.model(
        control_dataset_id=control, policy={"batch_window_seconds": 1, "promotion": "automatic"}
    )
    answer = model_owner.post(
        f"/models/{model}/pretrain", {"dataset_ids": [own, mine, theirs], "params": TRAINING}
    )
    assert followed(model_owner, answer.headers["location"])["state"] == "succeeded"
    asked = [
        owner.post("/requests", {"model_id": model, "dataset_ids": [dataset], "params": TRAINING})
        for owner, dataset in ((data_owner, mine), (other_owner, theirs))
    ]
    request = followed(data_owner, asked[0].headers["location"])
    other_request = followed(other_owner, asked[1].headers["location"])
    audited = data_owner.post(
        "/audit",
        {"request_id": request["id"], "views": 3, "matrix_size": 4},
        headers={"Prefer": "wait=60"},
    )
    assert audited.status_code == 200, audited.text
    return Story(model, mine, theirs, request, other_request, audited.json())


def test_both_requests_are_completed_by_one_job(story: Story, model_owner: User) -> None:
    assert (story.request["state"], story.other_request["state"]) == ("completed", "completed")
    assert story.request["result"] == story.other_request["result"]
    unlearn, pretrain = model_owner.get("/jobs").json()["items"]
    assert (pretrain["kind"], unlearn["kind"]) == ("pretrain", "unlearn")
    assert unlearn["request_ids"] == sorted([story.request["id"], story.other_request["id"]])
    assert unlearn["metrics"]["steps"] > 0


def test_the_result_is_the_head_and_has_forgotten_both(story: Story, model_owner: User) -> None:
    head = model_owner.get(f"/models/{story.model}").json()["head_checkpoint_id"]
    checkpoint = model_owner.get(f"/checkpoints/{head}").json()
    assert head == story.request["result"]["checkpoint_id"]
    assert checkpoint["forgotten"] == sorted([story.mine, story.theirs])
    assert checkpoint["digest"] == story.request["result"]["digest"]


def test_the_audit_reports_on_the_owners_samples(story: Story) -> None:
    assert story.audit["state"] == "succeeded"
    assert story.audit["before"]["digest"] == story.request["result"]["before_digest"]
    assert story.audit["after"]["digest"] == story.request["result"]["digest"]
    report = story.audit["report"]
    assert report["n_own"] == MINE
    per_sample = report["levels"]["encoder"]["forgetting_score"]["per_sample"]
    assert sorted(per_sample) == [f"mine-{number:03d}" for number in range(MINE)]
    assert report["verdict"]["sentence"]


def test_matrices_come_as_picture_table_and_array(story: Story, data_owner: User) -> None:
    for level in ("encoder", "projector"):
        arrays = {}
        for which in ("before", "after", "gap"):
            path = f"/audits/{story.audit['id']}/{which}"
            picture = data_owner.get(story.audit["pictures"][level][which])
            assert picture.headers["content-type"] == "image/png"
            assert "immutable" in picture.headers["cache-control"]
            Image.open(io.BytesIO(picture.content)).verify()
            table = data_owner.get(f"{path}.csv", params={"level": level})
            assert table.headers["content-type"].startswith("text/csv")
            array = data_owner.get(f"{path}.npy", params={"level": level})
            arrays[which] = np.load(io.BytesIO(array.content), allow_pickle=False)
            assert arrays[which].shape == (4, 4)
            assert arrays[which].dtype == np.float32
        gap = arrays["before"] - arrays["after"]
        np.testing.assert_allclose(gap, arrays["gap"], atol=1e-6)


def test_an_owner_reads_nothing_of_the_other_anywhere(
    story: Story, data_owner: User, other_owner: User
) -> None:
    request, audit = story.request["id"], story.audit["id"]
    paths = (
        *("/me", "/datasets", "/models", "/requests", "/audits"),
        f"/models/{story.model}",
        f"/requests/{request}",
        f"/requests/{request}/events",
        f"/audits/{audit}",
        *(f"/audits/{audit}/{which}.csv" for which in ("before", "after", "gap")),
    )
    everything = "".join(data_owner.get(path).text for path in paths)
    assert story.request["id"] in everything
    hidden = (story.theirs, story.other_request["id"], other_owner.id, "theirs-", "own-", "job_")
    assert [each for each in hidden if each in everything] == []
    assert "control-" not in everything


def test_the_other_owner_cannot_audit_this_request(story: Story, other_owner: User) -> None:
    answer = other_owner.post("/audit", {"request_id": story.request["id"]})
    problem_of(answer, 404, "not-found")


@pytest.mark.parametrize(
    ("change", "status", "slug"),
    [
        ({"matrix_size": 0}, 422, "invalid"),
        ({"matrix_size": 257}, 422, "invalid"),
        ({"views": 1}, 422, "invalid"),
        ({"views": 33}, 422, "invalid"),
        ({"seed": -1}, 422, "invalid"),
        ({"seed": 1.5}, 422, "invalid"),
        ({"dataset_ids": []}, 422, "invalid"),
        ({"dataset_ids": ["dst_" + "0" * 32]}, 422, "invalid"),
        ({"request_id": "req_" + "0" * 32}, 404, "not-found"),
    ],
)
def test_a_bad_audit_is_refused_and_nothing_is_added(
    *, story: Story, data_owner: User, change: dict[str, Any], status: int, slug: str
) -> None:
    before = data_owner.get("/audits").json()
    answer = data_owner.post("/audit", {"request_id": story.request["id"]} | change)
    problem_of(answer, status, slug)
    assert data_owner.get("/audits").json() == before


def test_what_was_forgotten_cannot_be_forgotten_again(story: Story, data_owner: User) -> None:
    answer = data_owner.post("/requests", {"model_id": story.model, "dataset_ids": [story.mine]})
    problem_of(answer, 409, "already-forgotten")
