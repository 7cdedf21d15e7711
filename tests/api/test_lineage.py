"""A model's history over HTTP: what each checkpoint came from, drift, and to which one can go back."""

from dataclasses import dataclass
from typing import Any

import pytest
from tests.api.conftest import Past, User, problem_of

SAMPLES = 3
"""In every data set of these tests."""


def measured(loss: float, drift: float, forgotten: float = 0.5) -> dict[str, Any]:
    """The measurements of a removal."""
    groups = {
        name: {"forgetting_score": {"mean": mean}}
        for name, mean in (("unlearn", forgotten), ("retain", drift))
    }
    return {"utility": {"before": 0.9, "after": 0.9 - loss}, "evaluation": {"encoder": groups}}


@dataclass(frozen=True)
class Scene:
    """A model trained on data sets of one owner, who asks for them one after the other."""

    past: Past
    model_owner: User
    data_owner: User
    model: str
    data: list[str]
    first: str

    def removed(self, number: int, **metrics: Any) -> str:
        """The result of forgetting one of the data sets."""
        body = {"model_id": self.model, "dataset_ids": [self.data[number]]}
        request = self.data_owner.post("/requests", body).json()["id"]
        return self.past.unlearned(request, **metrics)

    def lineage(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.model_owner.get(f"/models/{self.model}/lineage").json()[
            "items"
        ]
        return items

    def policy(self, **changes: Any) -> None:
        answer = self.model_owner.http.patch(f"/models/{self.model}/policy", json=changes)
        assert answer.status_code == 200, answer.text

    def drift(self) -> dict[str, Any]:
        found: dict[str, Any] = self.model_owner.get(f"/models/{self.model}").json()["drift"]
        return found

    def promote(self, checkpoint_id: str) -> Any:
        return self.model_owner.post(f"/checkpoints/{checkpoint_id}/promote")


@pytest.fixture
def scene(past: Past, model_owner: User, data_owner: User) -> Scene:
    own = past.sealed(model_owner, SAMPLES)
    data = [past.granted(data_owner, model_owner) for _ in range(3)]
    model = model_owner.model()
    first = past.trained(model_owner, model, [own, *data])
    return Scene(past, model_owner, data_owner, model, data, first)


def test_the_lineage_tells_the_whole_history_oldest_first(scene: Scene) -> None:
    second = scene.removed(0)
    third = scene.removed(1)
    found = scene.lineage()
    assert [each["id"] for each in found] == [scene.first, second, third]
    assert [each["parent_id"] for each in found] == [None, scene.first, second]
    assert [each["is_head"] for each in found] == [False, False, True]
    assert [each["trained_datasets"] for each in found] == [4, 4, 4]
    assert [each["forgotten_datasets"] for each in found] == [0, 1, 2]
    assert [each["drift"]["jobs"] for each in found] == [0, 1, 2]
    assert all(each["made_at"] <= each["promoted_at"] for each in found)
    assert [each["job_id"] is not None for each in found] == [True] * 3
    assert [each["promotable"] for each in found] == [False] * 3
    assert found[2]["reason"] == "It is the head."
    for older, owed in zip(found[:2], (scene.data[:2], scene.data[1:2]), strict=True):
        assert "forgotten on request" in older["reason"]
        for each in owed:
            assert each in older["reason"]


def test_it_comes_in_pages(scene: Scene) -> None:
    scene.removed(0)
    path = f"/models/{scene.model}/lineage"
    first = scene.model_owner.get(path, params={"limit": 1}).json()
    rest = scene.model_owner.get(path, params={"cursor": first["next_cursor"]}).json()
    assert [each["id"] for each in first["items"] + rest["items"]] == [
        each["id"] for each in scene.lineage()
    ]
    assert rest["next_cursor"] is None


class TestGoingBack:
    """To an earlier head, unless it would bring back what was forgotten on request."""

    def test_to_one_that_holds_nothing_forgotten(self, scene: Scene, past: Past) -> None:
        """Trained anew on the same data, with a worse result."""
        again = past.trained(scene.model_owner, scene.model, [scene.data[0]])
        earlier, head = scene.lineage()
        assert (head["id"], head["is_head"]) == (again, True)
        assert (earlier["promotable"], earlier["reason"]) == (True, None)
        answer = scene.promote(scene.first)
        assert answer.json()["head_checkpoint_id"] == scene.first
        assert scene.model_owner.get(f"/models/{scene.model}").json() == answer.json()

    def test_not_to_one_that_still_holds_it(self, scene: Scene) -> None:
        second = scene.removed(0)
        scene.removed(1)
        problem = problem_of(scene.promote(second), 409, "conflict")
        assert problem["dataset_ids"] == [scene.data[1]]
        problem = problem_of(scene.promote(scene.first), 409, "conflict")
        assert problem["dataset_ids"] == sorted(scene.data[:2])

    def test_not_while_a_job_of_the_model_runs(self, scene: Scene, past: Past) -> None:
        past.trained(scene.model_owner, scene.model, [scene.data[0]])
        body = {"dataset_ids": [scene.data[0]]}
        started = scene.model_owner.post(f"/models/{scene.model}/pretrain", body).json()
        past.claimed(started["id"])
        assert scene.lineage()[0]["promotable"] is False
        assert "is running" in scene.lineage()[0]["reason"]
        assert "is running" in problem_of(scene.promote(scene.first), 409, "conflict")["detail"]


class TestWithheld:
    """A result that misses the policy's limits is not promoted by itself."""

    def test_the_lineage_says_why_and_that_it_may_be_promoted(self, scene: Scene) -> None:
        scene.policy(max_utility_loss=0.01)
        result = scene.removed(0, **measured(loss=0.1, drift=0.0))
        withheld = scene.lineage()[1]
        assert (withheld["is_head"], withheld["promotable"]) == (False, True)
        assert withheld["problem"]["code"] == "promotion-withheld"
        assert "fell by 0.100, more than 0.01" in withheld["problem"]["detail"]
        shown = scene.model_owner.get(f"/checkpoints/{result}").json()
        assert shown["problem"] == withheld["problem"]
        assert shown["promoted_at"] is None
        assert scene.promote(result).json()["head_checkpoint_id"] == result
        assert scene.lineage()[1]["promoted_at"] is not None


class TestDrift:
    """What removals since the last full training add up to."""

    def test_a_model_without_weights_has_none(self, model_owner: User) -> None:
        assert model_owner.get(f"/models/{model_owner.model()}").json()["drift"] is None

    def test_after_a_full_training_there_is_none(self, scene: Scene) -> None:
        assert scene.drift() == {
            "jobs": 0,
            "forgotten_samples": 0,
            "trained_samples": 4 * SAMPLES,
            "forgotten_share": 0.0,
            "utility_lost": 0.0,
            "alignment_drift": 0.0,
            "retrain_advised": False,
            "reasons": [],
        }

    def test_it_adds_up(self, scene: Scene) -> None:
        scene.policy(max_forgotten_share=1, max_utility_lost=1, max_alignment_drift=1)
        scene.removed(0, **measured(loss=0.02, drift=0.01))
        scene.removed(1, **measured(loss=0.01, drift=0.03))
        found = scene.drift()
        assert (found["jobs"], found["forgotten_samples"]) == (2, 2 * SAMPLES)
        assert found["forgotten_share"] == pytest.approx(0.5)
        assert found["utility_lost"] == pytest.approx(0.03)
        assert found["alignment_drift"] == pytest.approx(0.04)
        assert found["retrain_advised"] is False
        assert scene.lineage()[-1]["drift"] == found

    def test_beyond_the_policys_limits_a_retrain_is_advised_with_reasons(
        self, scene: Scene
    ) -> None:
        scene.policy(max_forgotten_share=0.2, max_utility_lost=0.01, max_alignment_drift=1)
        scene.removed(0, **measured(loss=0.02, drift=0.01))
        found = scene.drift()
        assert found["retrain_advised"] is True
        assert [reason.split()[0] for reason in found["reasons"]] == ["0.25", "0.02"]
        scene.policy(max_forgotten_share=0.9, max_utility_lost=0.9)
        assert scene.drift()["retrain_advised"] is False


def test_every_part_of_the_policy_is_shown_and_bounded(model_owner: User) -> None:
    model = model_owner.model()
    changes = {
        "approval": "manual",
        "batch_window_seconds": 60.0,
        "max_batch_samples": 1000,
        "promotion": "manual",
        "min_forgetting": 0.01,
        "max_utility_loss": 0.02,
        "time_limit_seconds": 3600.0,
        "keep_days": 7,
        "worker_labels": ["a100"],
        "max_forgotten_share": 0.2,
        "max_utility_lost": 0.1,
        "max_alignment_drift": 0.3,
    }
    answer = model_owner.http.patch(f"/models/{model}/policy", json=changes)
    assert answer.json()["policy"] == changes
    for name, value in (
        ("approval", "maybe"),
        ("max_batch_samples", 0),
        ("min_forgetting", 3),
        ("time_limit_seconds", 0),
        ("keep_days", 3651),
        ("max_forgotten_share", 0),
        ("window", 1),
    ):
        bad = model_owner.http.patch(f"/models/{model}/policy", json={name: value})
        assert problem_of(bad, 422, "invalid")["errors"][0]["pointer"] == f"/{name}"
    assert model_owner.get(f"/models/{model}").json()["policy"] == changes
