"""The object store is away while the api runs: a problem that says to try again, and nothing recorded."""

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from tests.api.conftest import ENCODER, Past, User, images, left_behind, problem_of, shard_of

from expunge.api import problems
from expunge.formats.digests import content_digest, sha256_file
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import Checkpoint, IdempotencyKey, Job, Shard
from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.frameworks import build

Away = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def away(settings: Settings, url: str) -> Away:
    """Takes the store's directory away for a while, as an unmounted disk is."""
    assert url
    folder = settings.work_dir.parent / "objects"
    assert folder.as_uri() == settings.object_store

    @contextmanager
    def without() -> Iterator[None]:
        elsewhere = folder.rename(folder.with_name("elsewhere"))
        try:
            yield
        finally:
            elsewhere.rename(folder)

    return without


@pytest.fixture
def rows(session_factory: Sessions) -> Callable[[], list[int | None]]:
    def count() -> list[int | None]:
        with session_factory() as session:
            return [
                session.scalar(select(func.count()).select_from(table))
                for table in (Shard, Checkpoint, Job, IdempotencyKey)
            ]

    return count


def assert_try_again(answer: httpx.Response) -> None:
    assert "object store" in problem_of(answer, 503, "unavailable")["detail"]
    assert answer.headers["retry-after"] == "1"


def test_a_shard_is_refused_for_now_and_stored_afterwards(
    data_owner: User, tmp_path: Path, away: Away, rows: Callable[[], list[int | None]]
) -> None:
    dataset = data_owner.open_dataset()
    shard = shard_of(tmp_path, images("a", 2))
    before = rows()
    with away():
        assert_try_again(data_owner.put_shard(dataset, shard))
    assert rows() == before
    assert data_owner.put_shard(dataset, shard).status_code == 201


def test_an_upload_that_was_refused_does_not_use_its_key_up(
    *,
    model_owner: User,
    past: Past,
    tmp_path: Path,
    away: Away,
    rows: Callable[[], list[int | None]],
    settings: Settings,
) -> None:
    path = tmp_path / "encoder.safetensors"
    checkpoints.save(build(EncoderSpec.model_validate(ENCODER), seed=0), path)
    model, dataset = model_owner.model(), past.sealed(model_owner)
    headers = {"Content-Digest": content_digest(sha256_file(path)), "Idempotency-Key": "patient"}

    def upload() -> httpx.Response:
        return model_owner.http.post(
            f"/models/{model}/checkpoints",
            params={"dataset_ids": dataset},
            content=path.read_bytes(),
            headers=headers,
        )

    before = rows()
    with away():
        assert_try_again(upload())
    assert rows() == before
    assert left_behind(settings) == []
    assert upload().status_code == 202


def test_what_is_stored_cannot_be_read_for_now(model_owner: User, past: Past, away: Away) -> None:
    model, dataset = model_owner.model(), past.sealed(model_owner)
    checkpoint = past.trained(model_owner, model, [dataset])
    path = f"/checkpoints/{checkpoint}/weights"
    with away():
        assert_try_again(model_owner.get(path))
        assert model_owner.get(f"/checkpoints/{checkpoint}").status_code == 200
    assert model_owner.get(path).content.startswith(b"weights")


def test_a_full_disk_of_the_api_passes_too(tmp_path: Path) -> None:
    """The system's own error, from a route of the test: a full disk cannot be had for one folder only."""
    app = FastAPI()
    problems.install(app)

    @app.get("/full")
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    with TestClient(app) as client:
        answer = client.get("/full")
    assert "disk is full" in problem_of(answer, 503, "unavailable")["detail"]
    assert str(tmp_path) not in answer.text
    assert answer.headers["retry-after"] == "1"
