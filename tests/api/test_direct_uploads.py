"""Shards that owners send to the S3 store themselves: announced, sent, checked, recorded; and what is refused."""

import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from tests.api.conftest import MAX_SHARD_BYTES, User, images, left_behind, problem_of, shard_of
from tests.registry.s3 import public_settings_of, working_server

from expunge.client import Client, UnreachableError, transport
from expunge.client import datasets as client_datasets
from expunge.formats.digests import sha256_file
from expunge.registry import direct_uploads, orphans
from expunge.registry.database import Sessions
from expunge.registry.objects import ObjectStore, open_store
from expunge.registry.settings import Settings
from expunge.registry.tables import DirectUpload, PendingObject


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Iterator[Settings]:
    """Settings over an S3 store that owners reach."""
    with working_server() as endpoint:
        yield settings.model_copy(update=public_settings_of(endpoint))


@pytest.fixture
def store(settings: Settings, url: str) -> ObjectStore:
    assert url
    return open_store(settings)


@pytest.fixture
def dataset_id(data_owner: User) -> str:
    return data_owner.open_dataset()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return shard_of(tmp_path, images("a", 3))


def body_of(path: Path) -> dict[str, Any]:
    return {"name": "a.tar", "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def announced(user: User, dataset_id: str, path: Path, **changes: Any) -> dict[str, Any]:
    answer = user.post(f"/datasets/{dataset_id}/uploads", body_of(path) | changes)
    assert answer.status_code == 201, answer.text
    upload: dict[str, Any] = answer.json()
    return upload


def send(upload: dict[str, Any], data: bytes) -> None:
    headers = upload["headers"] | {"Content-Length": str(len(data))}
    answer = httpx.put(upload["url"], content=data, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text


def complete(user: User, dataset_id: str, upload: dict[str, Any]) -> httpx.Response:
    return user.post(f"/datasets/{dataset_id}/uploads/{upload['id']}/complete")


def sent_objects(store: ObjectStore) -> list[str]:
    return list(filter(re.compile("uploads/").match, store.keys()))


def test_what_was_sent_becomes_the_same_shard_as_an_upload_here(
    data_owner: User, dataset_id: str, shard: Path, store: ObjectStore, settings: Settings
) -> None:
    upload = announced(data_owner, dataset_id, shard)
    assert upload["url"].startswith(settings.s3_public_endpoint)
    assert upload["headers"]["Content-Length"] == str(shard.stat().st_size)
    send(upload, shard.read_bytes())
    assert data_owner.get(f"/datasets/{dataset_id}").json()["shards"] == []
    answer = complete(data_owner, dataset_id, upload)
    assert answer.status_code == 201, answer.text
    assert data_owner.get(f"/datasets/{dataset_id}").json()["shards"] == [answer.json()]
    twin = data_owner.open_dataset()
    assert data_owner.put_shard(twin, shard, name="a.tar").json() == answer.json()
    assert sent_objects(store) == []
    assert left_behind(settings) == []


def test_completing_again_changes_nothing_even_after_sealing(
    data_owner: User, dataset_id: str, shard: Path
) -> None:
    upload = announced(data_owner, dataset_id, shard)
    send(upload, shard.read_bytes())
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(complete(data_owner, dataset_id, upload)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert data_owner.post(f"/datasets/{dataset_id}/seal").status_code == 202
    answers.append(complete(data_owner, dataset_id, upload))
    assert [each.status_code for each in answers] == [201] * 4
    assert len({each.text for each in answers}) == 1
    stored = [
        row
        for row in data_owner.get("/log", params={"subject": dataset_id}).json()["items"]
        if row["event"] == "shard-stored"
    ]
    assert len(stored) == 1


def test_announcing_again_with_the_same_key_is_the_same_upload(
    data_owner: User, dataset_id: str, shard: Path
) -> None:
    path, headers = f"/datasets/{dataset_id}/uploads", {"Idempotency-Key": "upload-1"}
    first = data_owner.post(path, body_of(shard), headers=headers).json()
    again = data_owner.post(path, body_of(shard), headers=headers).json()
    assert first["id"] == again["id"]
    other = data_owner.post(path, body_of(shard) | {"name": "b.tar"}, headers=headers)
    problem_of(other, 422, "idempotency-key-reused")


def test_before_anything_was_sent_there_is_nothing_to_complete(
    data_owner: User, dataset_id: str, shard: Path
) -> None:
    upload = announced(data_owner, dataset_id, shard)
    problem_of(complete(data_owner, dataset_id, upload), 409, "nothing-received")


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "other bytes": lambda data: data[:-1] + b"!",
    "too few": lambda data: data[:-512],
    "too many": lambda data: data + bytes(512),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_was_not_announced_is_refused_and_removed(
    data_owner: User, shard: Path, store: ObjectStore, settings: Settings, case: str
) -> None:
    dataset_id = data_owner.open_dataset()
    upload = announced(data_owner, dataset_id, shard)
    # A server may keep what the signed headers forbid: the test's one does.
    send(upload, WRONG[case](shard.read_bytes()))
    problem_of(complete(data_owner, dataset_id, upload), 422, "digest-mismatch")
    assert sent_objects(store) == []
    assert left_behind(settings) == []
    assert data_owner.get(f"/datasets/{dataset_id}").json()["shards"] == []
    send(upload, shard.read_bytes())
    assert complete(data_owner, dataset_id, upload).status_code == 201


def test_what_breaks_the_format_is_refused_and_removed(
    data_owner: User, dataset_id: str, tmp_path: Path, store: ObjectStore
) -> None:
    (tmp_path / "no tar").write_bytes(b"certainly not a tar archive" * 100)
    upload = announced(data_owner, dataset_id, tmp_path / "no tar")
    send(upload, (tmp_path / "no tar").read_bytes())
    problem = problem_of(complete(data_owner, dataset_id, upload), 422, "invalid-shard")
    assert problem["code"] == "not-a-tar"
    assert sent_objects(store) == []


@pytest.mark.parametrize(
    ("changes", "status", "slug"),
    [
        ({"bytes": MAX_SHARD_BYTES + 1}, 413, "content-too-large"),
        ({"bytes": 0}, 422, "invalid"),
        ({"sha256": "A" * 64}, 422, "invalid"),
        ({"name": "../a.tar"}, 422, "invalid-shard"),
    ],
)
def test_what_can_never_be_a_shard_is_not_announced(
    data_owner: User, shard: Path, changes: dict[str, Any], status: int, slug: str
) -> None:
    dataset_id = data_owner.open_dataset()
    answer = data_owner.post(f"/datasets/{dataset_id}/uploads", body_of(shard) | changes)
    problem_of(answer, status, slug)


def test_a_data_set_that_is_being_sealed_takes_no_upload(
    data_owner: User, dataset_id: str, shard: Path
) -> None:
    upload = announced(data_owner, dataset_id, shard)
    send(upload, shard.read_bytes())
    data_owner.put_shard(dataset_id, shard, name="b.tar")
    data_owner.post(f"/datasets/{dataset_id}/seal")
    assert problem_of(complete(data_owner, dataset_id, upload), 409, "conflict")["state"]
    answer = data_owner.post(f"/datasets/{dataset_id}/uploads", body_of(shard))
    assert problem_of(answer, 409, "conflict")["state"]


def test_uploads_of_others_do_not_exist(
    data_owner: User, other_owner: User, dataset_id: str, shard: Path
) -> None:
    upload = announced(data_owner, dataset_id, shard)
    answer = other_owner.post(f"/datasets/{dataset_id}/uploads", body_of(shard))
    problem_of(answer, 404, "not-found")
    problem_of(complete(other_owner, dataset_id, upload), 404, "not-found")
    own = other_owner.open_dataset()
    problem_of(complete(other_owner, own, upload), 404, "not-found")
    problem_of(complete(data_owner, data_owner.open_dataset(), upload), 404, "not-found")


def test_an_open_data_set_has_only_so_many_open_uploads(
    data_owner: User, dataset_id: str, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_uploads, "MAX_OPEN", 2)
    for _ in range(2):
        announced(data_owner, dataset_id, shard)
    answer = data_owner.post(f"/datasets/{dataset_id}/uploads", body_of(shard))
    assert problem_of(answer, 409, "conflict")["allowed"] == 2


def expire(session_factory: Sessions, upload: dict[str, Any], **ago: float) -> None:
    with session_factory.begin() as session:
        session.execute(
            update(DirectUpload)
            .where(DirectUpload.id == upload["id"])
            .values(expires_at=func.now() - timedelta(**ago))
        )
        notes = PendingObject.key.contains(upload["id"])
        session.execute(
            update(PendingObject).where(notes).values(noted_at=func.now() - timedelta(**ago))
        )


def test_after_its_time_an_upload_is_refused_and_forgotten(
    data_owner: User,
    dataset_id: str,
    shard: Path,
    session_factory: Sessions,
    store: ObjectStore,
) -> None:
    path, headers = f"/datasets/{dataset_id}/uploads", {"Idempotency-Key": "upload-2"}
    upload = data_owner.post(path, body_of(shard), headers=headers).json()
    send(upload, shard.read_bytes())
    expire(session_factory, upload, seconds=1)
    problem_of(complete(data_owner, dataset_id, upload), 409, "direct-upload-expired")
    again = data_owner.post(path, body_of(shard), headers=headers)
    problem_of(again, 409, "direct-upload-expired")
    expire(session_factory, upload, days=2)
    orphans.sweep(session_factory, store, grace_seconds=0)
    with session_factory.begin() as session:
        direct_uploads.forget_expired(session)
    problem_of(complete(data_owner, dataset_id, upload), 404, "not-found")


def test_a_sweep_leaves_open_uploads_and_removes_what_was_abandoned(
    data_owner: User,
    dataset_id: str,
    shard: Path,
    store: ObjectStore,
    session_factory: Sessions,
) -> None:
    upload = announced(data_owner, dataset_id, shard)
    send(upload, shard.read_bytes())
    orphans.sweep(session_factory, store, grace_seconds=0)
    assert any(upload["id"] in key for key in sent_objects(store))
    assert list(orphans.check(session_factory, store)) == []
    assert complete(data_owner, dataset_id, upload).status_code == 201
    # Its sender still has the address, and uses it again: nobody names that.
    send(upload, shard.read_bytes())
    for _ in range(2):
        orphans.sweep(session_factory, store, grace_seconds=0)
    assert not any(upload["id"] in key for key in sent_objects(store))
    assert list(orphans.check(session_factory, store)) == []


def test_deleting_the_data_set_removes_what_was_sent_too(
    data_owner: User, dataset_id: str, shard: Path, store: ObjectStore
) -> None:
    upload = announced(data_owner, dataset_id, shard)
    send(upload, shard.read_bytes())
    answer = data_owner.http.delete(f"/datasets/{dataset_id}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "deleted"
    assert not any(upload["id"] in key for key in sent_objects(store))
    problem_of(complete(data_owner, dataset_id, upload), 404, "not-found")


@pytest.fixture
def client(data_owner: User, url: str) -> Iterator[Client]:
    """The owner's own Python."""
    key = data_owner.http.headers["Authorization"].removeprefix("Bearer ")
    with Client(url, key) as client:
        yield client


@pytest.mark.parametrize(("direct", "uploads"), [(True, 1), (False, 0), (None, 0)])
def test_the_sdk_sends_shards_where_it_is_told(
    client: Client, shard: Path, session_factory: Sessions, *, direct: bool | None, uploads: int
) -> None:
    dataset = client.create_dataset(f"sent {direct}")
    stored = client.upload_shard(dataset.id, shard, "a.tar", direct=direct)
    assert client.dataset(dataset.id).shards == [stored]
    with session_factory() as session:
        asked = select(func.count()).where(DirectUpload.dataset_id == dataset.id)
        assert session.scalar(asked) == uploads, "small ones go through the service"


def test_the_sdk_goes_through_the_service_where_the_store_is_out_of_reach(
    client: Client, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_datasets, "DIRECT_FROM_BYTES", 0)
    monkeypatch.setattr(transport, "RETRIES", 0)

    def out_of_reach(*_: object, **__: object) -> httpx.Response:
        message = "no route"
        raise httpx.ConnectError(message)

    monkeypatch.setattr(httpx, "put", out_of_reach)
    dataset = client.create_dataset("out of reach")
    assert client.upload_shard(dataset.id, shard, "a.tar").samples == 3
    with pytest.raises(UnreachableError, match="object store at localhost"):
        client.upload_shard(dataset.id, shard, "b.tar", direct=True)
