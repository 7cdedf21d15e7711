"""Models over HTTP: encoder, policy, control images, pre-training and promotion. No worker runs here."""

from typing import Any

import pytest
from tests.api.conftest import ENCODER, Past, User, problem_of


class TestPromotion:
    """Which weights are in force."""

    def test_manual_promotion_waits_for_the_owner(
        self, past: Past, model_owner: User, data_owner: User
    ) -> None:
        own, data = past.sealed(model_owner), past.granted(data_owner, model_owner)
        model = model_owner.model(policy={"promotion": "manual"})
        first = past.trained(model_owner, model, [own, data])
        ask = {"model_id": model, "dataset_ids": [data]}
        request = data_owner.post("/requests", ask).json()
        past.unlearned(request["id"])
        done = data_owner.get(f"/requests/{request['id']}").json()
        assert done["state"] == "completed"
        assert done["result"]["before_checkpoint_id"] == first
        assert done["result"]["seconds"] == 2.5
        assert model_owner.get(f"/models/{model}").json()["head_checkpoint_id"] == first
        after = done["result"]["checkpoint_id"]
        promoted = model_owner.post(f"/checkpoints/{after}/promote").json()
        assert promoted["head_checkpoint_id"] == after

    def test_a_head_does_not_go_back_to_what_was_forgotten(
        self, past: Past, model_owner: User, data_owner: User
    ) -> None:
        own, data = past.sealed(model_owner), past.granted(data_owner, model_owner)
        model = model_owner.model()
        first = past.trained(model_owner, model, [own, data])
        ask = {"model_id": model, "dataset_ids": [data]}
        request = data_owner.post("/requests", ask).json()
        past.unlearned(request["id"])
        problem = problem_of(model_owner.post(f"/checkpoints/{first}/promote"), 409, "conflict")
        assert problem["dataset_ids"] == [data]


class TestModels:
    """Models, their policy, control images and pre-training: bad input changes nothing."""

    @pytest.mark.parametrize(
        ("encoder", "pointer"),
        [
            (ENCODER | {"image_size": 8}, "/encoder/image_size"),
            (
                ENCODER | {"architecture": {"name": "resnet50", "width": 8}},
                "/encoder/architecture/resnet50",
            ),
            (ENCODER | {"objective": {"framework": "barlow"}}, "/encoder/objective"),
            (ENCODER | {"std": [0, 1, 1]}, "/encoder"),
            (ENCODER | {"depth": 3}, "/encoder/depth"),
        ],
    )
    def test_an_encoder_outside_its_bounds_is_refused(
        self, model_owner: User, encoder: dict[str, Any], pointer: str
    ) -> None:
        answer = model_owner.post("/models", {"name": "bad", "encoder": encoder})
        assert problem_of(answer, 422, "invalid")["errors"][0]["pointer"] == pointer
        models = model_owner.get("/models", params={"limit": 200}).json()["items"]
        assert "bad" not in [each["name"] for each in models]

    def test_a_name_is_taken_once(self, model_owner: User) -> None:
        body = {"name": "twice", "encoder": ENCODER}
        assert model_owner.post("/models", body).status_code == 201
        problem_of(model_owner.post("/models", body), 409, "conflict")

    def test_policy_changes_in_parts(self, model_owner: User) -> None:
        model = model_owner.model(policy={"batch_window_seconds": 5})
        before = model_owner.get(f"/models/{model}").json()["policy"]
        changed = model_owner.http.patch(f"/models/{model}/policy", json={"promotion": "manual"})
        assert before["batch_window_seconds"] == 5.0
        assert changed.json()["policy"] == before | {"promotion": "manual"}
        bad = model_owner.http.patch(
            f"/models/{model}/policy", json={"batch_window_seconds": 86_401}
        )
        assert problem_of(bad, 422, "invalid")["errors"][0]["allowed"] == {"le": 86_400}
        assert model_owner.get(f"/models/{model}").json() == changed.json()

    def test_control_images_are_never_trained_on(self, model_owner: User, past: Past) -> None:
        own, control = past.sealed(model_owner), past.sealed(model_owner)
        model = model_owner.model(control_dataset_id=control)
        answer = model_owner.post(f"/models/{model}/pretrain", {"dataset_ids": [own, control]})
        assert "is the model's control" in problem_of(answer, 422, "invalid")["detail"]
        past.trained(model_owner, model, [own])
        answer = model_owner.http.put(f"/models/{model}/control", json={"dataset_id": own})
        assert "it is no control" in problem_of(answer, 422, "invalid")["detail"]

    @pytest.mark.parametrize(
        ("params", "pointer", "allowed"),
        [
            ({"epochs": 0}, "/params/epochs", {"ge": 1}),
            ({"schedule": "step"}, "/params/schedule", {"expected": "'cosine' or 'constant'"}),
            ({"depth": 1}, "/params/depth", None),
        ],
    )
    def test_pre_training_parameters_are_bounded(
        self, model_owner: User, past: Past, params: dict[str, Any], pointer: str, allowed: Any
    ) -> None:
        model, own = model_owner.model(), past.sealed(model_owner)
        body = {"dataset_ids": [own], "params": params}
        problem = problem_of(model_owner.post(f"/models/{model}/pretrain", body), 422, "invalid")
        assert problem["errors"][0]["pointer"] == pointer
        assert problem["errors"][0].get("allowed") == allowed
        jobs = model_owner.get("/jobs", params={"limit": 200}).json()["items"]
        assert model not in [each["model_id"] for each in jobs]

    def test_data_without_a_grant_is_not_found(
        self, model_owner: User, data_owner: User, past: Past
    ) -> None:
        model, data = model_owner.model(), past.granted(data_owner, model_owner)
        data_owner.http.delete(f"/datasets/{data}/grants/{model_owner.id}")
        answer = model_owner.post(f"/models/{model}/pretrain", {"dataset_ids": [data]})
        assert data in problem_of(answer, 404, "not-found")["detail"]
