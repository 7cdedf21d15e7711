"""Every creating call repeated with its Idempotency-Key: the same resource, one row, nothing for another body."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from tests.api.conftest import ENCODER, Past, User, left_behind, problem_of

from expunge.formats.digests import content_digest
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import (
    ApiKey,
    Audit,
    Checkpoint,
    Comparison,
    Dataset,
    IdempotencyKey,
    Job,
    LogRow,
    Model,
    Party,
    Request,
)
from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.frameworks import build

DUPLICATES = 8
TABLES = (ApiKey, Audit, Checkpoint, Comparison, Dataset, Job, LogRow, Model, Party, Request)


@dataclass(frozen=True)
class Call:
    """A creating call: who makes it, and where its body differs."""

    user: User
    path: str
    body: dict[str, Any]
    other: dict[str, Any]
    status: int
    content: bytes | None = None

    def make(self, key: str, **changes: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key}
        if self.content is None:
            return self.user.post(self.path, self.body | changes, headers=headers)
        headers["Content-Digest"] = content_digest(hashlib.sha256(self.content).hexdigest())
        params = self.body | changes
        return self.user.http.post(self.path, content=self.content, params=params, headers=headers)


@dataclass(frozen=True)
class Scene:
    """A trained model whose owner's data is forgotten on request, and a file of weights."""

    operator: User
    model_owner: User
    data_owner: User
    model: str
    spare: str
    mine: str
    own: tuple[str, str]
    completed: str
    weights: bytes

    def call(self, name: str, number: int) -> Call:
        """The call of that name; `number` tells tests that share the parties apart."""
        office, trainer, owner = self.operator, self.model_owner, self.data_owner
        spare, keys = f"/models/{self.spare}", f"/parties/{owner.id}/keys"
        named = {"name": f"thing {number}"}
        training = {"dataset_ids": [*self.own], "params": {"epochs": 2}}
        trained, less = {"dataset_ids": [self.own[0]]}, {"dataset_ids": [self.own[1]]}
        asked = {"model_id": self.model, "dataset_ids": [self.mine]}
        audited = {"request_id": self.completed, "views": 3}
        methods = [{"method": "fine_tune"}]
        compared = {"model_id": self.model, "dataset_ids": [self.own[0]], "methods": methods}
        manual = {"policy": {"promotion": "manual"}}
        calls = {
            "party": (office, "/parties", named | {"role": "auditor"}, {"name": "other"}, 201),
            "key": (office, keys, {"expires_in_days": 3}, {"expires_in_days": 4}, 201),
            "dataset": (owner, "/datasets", named, {"name": "other"}, 201),
            "model": (trainer, "/models", named | {"encoder": ENCODER}, manual, 201),
            "pretrain": (trainer, f"{spare}/pretrain", training, {"seed": 1}, 202),
            "checkpoint": (trainer, f"{spare}/checkpoints", trained, less, 202, self.weights),
            "request": (owner, "/requests", asked, {"method": "fine_tune"}, 202),
            "audit": (owner, "/audit", audited, {"seed": 1}, 202),
            "comparison": (trainer, "/comparisons", compared, {"seeds": [1]}, 202),
        }
        return Call(*calls[name])


NAMES = (
    *("party", "key", "dataset", "model", "pretrain", "checkpoint"),
    *("request", "audit", "comparison"),
)


@pytest.fixture
def scene(past: Past, operator: User, model_owner: User, data_owner: User, weights: bytes) -> Scene:
    own = past.sealed(model_owner), past.sealed(model_owner)
    mine, gone = (past.granted(data_owner, model_owner) for _ in range(2))
    control = past.sealed(model_owner)
    model = model_owner.model(control_dataset_id=control)
    past.trained(model_owner, model, [*own, mine, gone])
    asked = data_owner.post("/requests", {"model_id": model, "dataset_ids": [gone]}).json()
    past.unlearned(asked["id"])
    spare = model_owner.model()
    return Scene(operator, model_owner, data_owner, model, spare, mine, own, asked["id"], weights)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint file of the models of these tests."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    checkpoints.save(build(EncoderSpec.model_validate(ENCODER), seed=0), path)
    return path.read_bytes()


@pytest.fixture
def rows(session_factory: Sessions) -> Callable[[], dict[str, int]]:
    def count() -> dict[str, int]:
        with session_factory() as session:
            return {
                table.__name__: session.scalar(select(func.count()).select_from(table)) or 0
                for table in (*TABLES, IdempotencyKey)
            }

    return count


@pytest.mark.parametrize("name", NAMES)
class TestEveryCreatingCall:
    """What holds for each of them."""

    def test_a_repeated_call_answers_with_the_same_resource(
        self, scene: Scene, rows: Callable[[], dict[str, int]], name: str
    ) -> None:
        call = scene.call(name, 1)
        first = call.make(f"again-{name}")
        assert first.status_code == call.status, first.text
        before = rows()
        again = call.make(f"again-{name}")
        assert again.status_code == call.status, again.text
        assert again.json()["id"] == first.json()["id"]
        assert again.headers.get("location") == first.headers.get("location")
        assert rows() == before

    def test_another_body_is_refused_and_nothing_changes(
        self, scene: Scene, rows: Callable[[], dict[str, int]], name: str
    ) -> None:
        call = scene.call(name, 2)
        assert call.make(f"other-{name}").status_code == call.status
        before = rows()
        answer = call.make(f"other-{name}", **call.other)
        problem_of(answer, 422, "idempotency-key-reused")
        assert rows() == before

    def test_duplicates_at_once_make_one(
        self, scene: Scene, rows: Callable[[], dict[str, int]], name: str
    ) -> None:
        call = scene.call(name, 3)
        before = rows()
        with ThreadPoolExecutor(DUPLICATES) as pool:
            answers = list(pool.map(lambda _: call.make(f"many-{name}"), range(DUPLICATES)))
        assert {answer.status_code for answer in answers} == {call.status}
        assert len({answer.json()["id"] for answer in answers}) == 1
        added = {table: after - before[table] for table, after in rows().items()}
        assert added["IdempotencyKey"] == 1
        del added["LogRow"]
        assert set(added.values()) <= {0, 1}


def test_a_key_belongs_to_one_kind_of_call(scene: Scene) -> None:
    """The same words mean different things to different calls."""
    headers = {"Idempotency-Key": "one-for-both"}
    made = scene.model_owner.post("/datasets", {"name": "twin"}, headers=headers)
    assert made.status_code == 201
    body = {"name": "twin", "encoder": ENCODER}
    answer = scene.model_owner.post("/models", body, headers=headers)
    problem_of(answer, 422, "idempotency-key-reused")


def test_a_repeated_key_shows_no_secret(operator: User, data_owner: User) -> None:
    headers, path = {"Idempotency-Key": "shown-once"}, f"/parties/{data_owner.id}/keys"
    first = operator.post(path, {}, headers=headers).json()
    again = operator.post(path, {}, headers=headers).json()
    assert first["secret"].startswith("xpk_")
    assert again == first | {"secret": None}


def test_the_answer_is_the_resource_as_it_is_now(scene: Scene, past: Past) -> None:
    call = scene.call("request", 4)
    first = call.make("as-it-is").json()
    past.unlearned(first["id"])
    again = call.make("as-it-is")
    assert (again.status_code, again.json()["state"]) == (202, "completed")
    assert again.json()["id"] == first["id"]


def test_a_repeated_upload_is_answered_also_when_it_would_be_refused_by_now(
    scene: Scene, model_owner: User, data_owner: User, past: Past, settings: Settings
) -> None:
    """The owner of its training data took the grant back: nothing new is made."""
    granted = past.granted(data_owner, model_owner)
    call = replace(scene.call("checkpoint", 5), body={"dataset_ids": [granted]})
    first = call.make("upload-late")
    assert first.status_code == 202, first.text
    data_owner.http.delete(f"/datasets/{granted}/grants/{model_owner.id}")
    again = call.make("upload-late")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    problem_of(call.make("upload-anew"), 404, "not-found")
    assert left_behind(settings) == []
