"""Checkpoint upload, check, release and promotion over HTTP."""

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import func, select
from tests.api.conftest import ENCODER, Past, User, left_behind, problem_of

from expunge.formats.digests import content_digest, sha256_file
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import Checkpoint, Job
from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.frameworks import build

MOCO = {
    "objective": {"framework": "moco", "projector_dim": 8, "queue_size": 32},
    "architecture": {"name": "resnet18_cifar", "width": 4},
    "image_size": 16,
}


def weights_file(path: Path, encoder: dict[str, Any]) -> Path:
    """Fresh weights of an encoder as a checkpoint file."""
    checkpoints.save(build(EncoderSpec.model_validate(encoder), seed=0), path)
    return path


def altered(source: Path, target: Path, **changes: torch.Tensor | None) -> Path:
    """A well-formed copy whose first tensors named `encoder.*` are changed."""
    tensors = load_file(source)
    name = next(each for each in sorted(tensors) if each.startswith("encoder."))
    change = changes["to"]
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change
    save_file(tensors, target, metadata=metadata_of(source))
    return target


def metadata_of(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def renamed(source: Path, target: Path, **metadata: str) -> Path:
    save_file(load_file(source), target, metadata=metadata_of(source) | metadata)
    return target


@dataclass
class Desk:
    """A model without weights, data that they may say they were trained on, and a good file."""

    user: User
    model: str
    dataset: str
    good: Path
    sessions: Sessions

    def upload(self, path: Path, **options: Any) -> httpx.Response:
        query = options.pop("query", {"dataset_ids": self.dataset})
        headers = {"Content-Digest": content_digest(sha256_file(path)), "Prefer": "wait=30"}
        return self.user.http.post(
            f"/models/{self.model}/checkpoints",
            params=query,
            content=path.read_bytes(),
            headers=headers | options,
        )

    def rows(self) -> list[int | None]:
        with self.sessions() as session:
            return [
                session.scalar(select(func.count()).select_from(table))
                for table in (Checkpoint, Job)
            ]


@pytest.fixture
def desk(model_owner: User, past: Past, tmp_path: Path, session_factory: Sessions) -> Desk:
    return Desk(
        model_owner,
        model_owner.model(),
        past.sealed(model_owner),
        weights_file(tmp_path / "good.safetensors", ENCODER),
        session_factory,
    )


@pytest.fixture
def unchanged(desk: Desk, settings: Settings) -> Callable[[], None]:
    before = desk.rows(), desk.user.get(f"/models/{desk.model}").json()

    def check() -> None:
        assert (desk.rows(), desk.user.get(f"/models/{desk.model}").json()) == before
        assert left_behind(settings) == []

    return check


@pytest.mark.usefixtures("worker")
def test_a_good_file_becomes_ready_and_the_models_head(desk: Desk) -> None:
    answer = desk.upload(desk.good)
    assert answer.status_code == 200, answer.text
    checkpoint = answer.json()
    assert checkpoint["state"] == "ready"
    assert checkpoint["is_head"]
    assert checkpoint["trained_on"] == [desk.dataset]
    assert checkpoint["forgotten"] == []
    assert checkpoint["digest"] == f"sha256:{sha256_file(desk.good)}"
    assert answer.headers["location"] == f"/checkpoints/{checkpoint['id']}"
    assert desk.user.get(answer.headers["location"]).json() == checkpoint
    listed = desk.user.get(f"/models/{desk.model}/checkpoints").json()["items"]
    assert listed == [checkpoint]


@pytest.mark.usefixtures("worker")
def test_only_encoder_and_projector_leave_the_service(
    model_owner: User, past: Past, tmp_path: Path, session_factory: Sessions
) -> None:
    whole = weights_file(tmp_path / "moco.safetensors", MOCO)
    model = model_owner.model(encoder=MOCO)
    desk = Desk(model_owner, model, past.sealed(model_owner), whole, session_factory)
    checkpoint = desk.upload(whole).json()
    answer = model_owner.get(f"/checkpoints/{checkpoint['id']}/weights")
    assert answer.status_code == 200
    released = tmp_path / "released.safetensors"
    released.write_bytes(answer.content)
    assert f"sha256:{sha256_file(released)}" == checkpoint["release_digest"]
    assert answer.headers["content-digest"] == content_digest(sha256_file(released))
    inside, outside = load_file(whole), load_file(released)
    assert {name.split(".")[0] for name in outside} == {"encoder", "projector"}
    assert "queue" in inside
    for name, tensor in outside.items():
        assert torch.equal(tensor, inside[name])


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("to", "said"),
    [
        (None, "missing"),
        (torch.zeros(3, 3), "shape"),
        ("nan", "finite"),
    ],
)
def test_tensors_that_do_not_fit_the_header_make_it_invalid(
    desk: Desk, tmp_path: Path, to: Any, said: str
) -> None:
    if isinstance(to, str):
        tensors = load_file(desk.good)
        first = next(each for each in sorted(tensors) if each.startswith("encoder."))
        to = torch.full_like(tensors[first], float("nan"))
    path = altered(desk.good, tmp_path / "bad.safetensors", to=to)
    checkpoint = desk.upload(path).json()
    assert checkpoint["state"] == "invalid"
    assert checkpoint["problem"]["code"] == "checkpoint-mismatch"
    assert said in checkpoint["problem"]["detail"]
    assert not checkpoint["is_head"]
    assert desk.user.get(f"/models/{desk.model}").json()["head_checkpoint_id"] is None
    answer = desk.user.get(f"/checkpoints/{checkpoint['id']}/weights")
    problem_of(answer, 409, "conflict")
    problem_of(desk.user.post(f"/checkpoints/{checkpoint['id']}/promote"), 409, "conflict")


@pytest.mark.usefixtures("worker")
def test_weights_that_the_store_has_damaged_are_not_handed_out(
    desk: Desk, settings: Settings
) -> None:
    checkpoint = desk.upload(desk.good).json()
    with desk.sessions() as session:
        key = session.get_one(Checkpoint, checkpoint["id"]).release_key
    stored = Path(settings.object_store.removeprefix("file://")) / key
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        answer = desk.user.get(f"/checkpoints/{checkpoint['id']}/weights")
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
    finally:
        stored.write_bytes(whole)
    assert desk.user.get(f"/checkpoints/{checkpoint['id']}/weights").content == whole


def truncated(good: Path, target: Path) -> Path:
    target.write_bytes(good.read_bytes()[:-100])
    return target


def padded(good: Path, target: Path) -> Path:
    target.write_bytes(good.read_bytes() + b"tail")
    return target


def pickled(good: Path, target: Path) -> Path:
    target.write_bytes(pickle.dumps({"encoder": [1, 2, 3]}))
    return target


def header_only(good: Path, target: Path) -> Path:
    target.write_bytes(good.read_bytes()[:4])
    return target


def other_width(good: Path, target: Path) -> Path:
    return weights_file(target, ENCODER | {"architecture": {"name": "resnet18_cifar", "width": 8}})


def other_framework(good: Path, target: Path) -> Path:
    return weights_file(target, MOCO)


def no_format(good: Path, target: Path) -> Path:
    return renamed(good, target, format="pt")


def no_spec(good: Path, target: Path) -> Path:
    return renamed(good, target, spec="{}")


def immense(good: Path, target: Path) -> Path:
    shape = {"dtype": "F32", "shape": [10**4000] * 3, "data_offsets": [0, 0]}
    text = json.dumps({"encoder.w": shape}).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text)
    return target


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "the tensors need"),
        (padded, "the tensors need"),
        (pickled, "header"),
        (header_only, "too short"),
        (immense, "one of no file"),
        (other_width, "architecture.width is 8, the model has 4"),
        (other_framework, 'objective.framework is "moco", the model has "simclr"'),
        (no_format, "'expunge-checkpoint/1' is expected"),
        (no_spec, "objective"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_the_model_is_refused(
    *,
    desk: Desk,
    tmp_path: Path,
    unchanged: Callable[[], None],
    spoil: Callable[[Path, Path], Path],
    said: str,
) -> None:
    path = spoil(desk.good, tmp_path / "bad.safetensors")
    assert said in problem_of(desk.upload(path), 422, "invalid-checkpoint")["detail"]
    unchanged()


def test_a_wrong_digest_is_refused(desk: Desk, unchanged: Callable[[], None]) -> None:
    answer = desk.upload(desk.good, **{"Content-Digest": content_digest("0" * 64)})
    problem_of(answer, 422, "digest-mismatch")
    unchanged()


def test_training_data_must_be_named_once_and_usable(
    desk: Desk, other_owner: User, past: Past
) -> None:
    foreign, unsealed = past.sealed(other_owner), desk.user.open_dataset()
    before = desk.rows()
    for query, status, slug in (
        ({}, 422, "invalid"),
        ({"dataset_ids": [desk.dataset, desk.dataset]}, 422, "invalid"),
        ({"dataset_ids": "dst_1"}, 422, "invalid"),
        ({"dataset_ids": foreign}, 404, "not-found"),
        ({"dataset_ids": unsealed}, 409, "dataset-not-sealed"),
    ):
        problem_of(desk.upload(desk.good, query=query), status, slug)
    assert desk.rows() == before
