"""Bytes stored for one party: what counts, what is refused before, while and after it comes, and races."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, update
from tests.api.conftest import (
    ENCODER,
    Cast,
    Past,
    User,
    images,
    left_behind,
    problem_of,
    shard_of,
)
from tests.api.test_checkpoints import weights_file
from tests.registry.s3 import public_settings_of, working_server

from expunge.formats.digests import content_digest, sha256_file
from expunge.registry import direct_uploads, orphans, quota
from expunge.registry.database import Sessions
from expunge.registry.objects import ObjectStore, open_store
from expunge.registry.settings import Settings
from expunge.registry.tables import Dataset, DirectUpload, PendingObject, Role

SHARD_BYTES = 174_080
"""Of `a_shard`."""
LIMIT = 5 * SHARD_BYTES


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Iterator[Settings]:
    with working_server() as endpoint:
        yield settings.model_copy(
            update={**public_settings_of(endpoint), "stored_bytes_per_party": LIMIT}
        )


@pytest.fixture
def store(settings: Settings, url: str) -> ObjectStore:
    assert url
    return open_store(settings)


@pytest.fixture
def owner(cast: Cast) -> User:
    return cast.party(Role.DATA_OWNER)


def a_shard(folder: Path, seed: int = 0) -> bytes:
    """Never the same bytes for two seeds, always as many."""
    path = shard_of(folder, images("a", 64, seed=seed))
    data = path.read_bytes()
    assert len(data) == SHARD_BYTES
    return data


def used(user: User) -> int:
    storage = user.get("/me").json()["storage"]
    assert storage["limit_bytes"] == LIMIT
    return int(storage["used_bytes"])


def announce(user: User, dataset: str, data: bytes, name: str = "a.tar") -> httpx.Response:
    body = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return user.post(f"/datasets/{dataset}/uploads", body)


def filled(user: User, folder: Path, shards: int = 5) -> str:
    """A data set that holds so many shards."""
    dataset = user.open_dataset()
    for number in range(shards):
        answer = user.put_shard(dataset, a_shard(folder, number), f"{number}.tar")
        assert answer.status_code == 201, answer.text
    return dataset


def exceeded(answer: httpx.Response, *, used: int, asked: int = SHARD_BYTES) -> None:
    problem = problem_of(answer, 413, "quota-exceeded")
    assert {name: problem[name] for name in ("limit", "used", "asked")} == {
        "limit": LIMIT,
        "used": used,
        "asked": asked,
    }
    assert f"{LIMIT:,}" in problem["detail"]


def test_shards_count_until_they_are_deleted(owner: User, tmp_path: Path) -> None:
    assert used(owner) == 0
    dataset = filled(owner, tmp_path)
    assert used(owner) == LIMIT
    another = owner.open_dataset()
    exceeded(owner.put_shard(another, a_shard(tmp_path, 9)), used=LIMIT)
    exceeded(announce(owner, another, a_shard(tmp_path, 9)), used=LIMIT)
    assert owner.http.delete(f"/datasets/{dataset}").json()["state"] == "deleted"
    assert used(owner) == 0
    assert owner.put_shard(another, a_shard(tmp_path, 9)).status_code == 201


def test_it_is_refused_before_it_comes_and_while_it_comes(
    owner: User, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = filled(owner, tmp_path)
    data = a_shard(tmp_path, 9)

    def stored(*_: Any) -> None:
        pytest.fail("it is not even looked at")

    monkeypatch.setattr("expunge.api.routes.datasets.stored", stored)
    exceeded(owner.put_shard(dataset, data, "more.tar"), used=LIMIT)
    digest = {"Content-Digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"}
    pieces = iter([data[:1000], *[b"x"] * 100])
    path = f"/datasets/{dataset}/shards/more.tar"
    problem = problem_of(
        owner.http.put(path, content=pieces, headers=digest), 413, "quota-exceeded"
    )
    assert problem["used"] == LIMIT
    assert left_behind(settings) == []


def test_what_is_replaced_does_not_count_and_is_not_kept(
    owner: User, tmp_path: Path, store: ObjectStore
) -> None:
    dataset = filled(owner, tmp_path)
    before = set(store.keys())
    for seed in range(10, 14):
        assert owner.put_shard(dataset, a_shard(tmp_path, seed), "0.tar").status_code == 201
        assert len(set(store.keys())) == len(before), "no heap of replaced ones"
    assert used(owner) == LIMIT
    assert owner.put_shard(dataset, a_shard(tmp_path, 13), "0.tar").status_code == 201
    assert len(set(store.keys())) == len(before), "the same again is kept"


def test_of_uploads_at_once_none_exceeds_it_and_none_is_left_behind(
    owner: User, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = filled(owner, tmp_path, 3)
    before = len(set(store.keys()))
    bodies = {f"more-{seed}.tar": a_shard(tmp_path, seed) for seed in range(20, 28)}

    def put(name: str) -> int:
        headers = {"Content-Digest": content_digest(hashlib.sha256(bodies[name]).hexdigest())}
        path = f"/datasets/{dataset}/shards/{name}"
        return owner.http.put(path, content=bodies[name], headers=headers).status_code

    # As if all of them had looked before any was recorded.
    with monkeypatch.context() as patch, ThreadPoolExecutor(len(bodies)) as pool:
        patch.setattr(quota, "room", lambda *_, **__: quota.ANY)
        answers = list(pool.map(put, bodies))
    assert sorted(answers) == [201] * 2 + [413] * 6
    assert used(owner) == LIMIT
    assert len(set(store.keys())) == before + 2


def send(upload: dict[str, Any], data: bytes) -> None:
    headers = upload["headers"] | {"Content-Length": str(len(data))}
    httpx.put(upload["url"], content=data, headers=headers, trust_env=False).raise_for_status()


def expire(sessions: Sessions, upload: dict[str, Any], **ago: float) -> None:
    with sessions.begin() as session:
        past = func.now() - timedelta(**ago)
        of_upload = DirectUpload.id == upload["id"]
        session.execute(update(DirectUpload).where(of_upload).values(expires_at=past))
        notes = PendingObject.key.contains(upload["id"])
        session.execute(update(PendingObject).where(notes).values(noted_at=past))


def test_an_announced_upload_counts_until_it_is_completed_or_swept(
    owner: User, tmp_path: Path, session_factory: Sessions, store: ObjectStore
) -> None:
    filled(owner, tmp_path, 4)
    dataset = owner.open_dataset()
    data = a_shard(tmp_path, 30)
    upload = announce(owner, dataset, data).json()
    assert used(owner) == LIMIT
    exceeded(announce(owner, dataset, data, "b.tar"), used=LIMIT)
    exceeded(owner.put_shard(dataset, data, "b.tar"), used=LIMIT)
    send(upload, data)
    completed = owner.post(f"/datasets/{dataset}/uploads/{upload['id']}/complete")
    assert completed.status_code == 201, completed.text
    assert used(owner) == LIMIT, "once, not twice"
    assert owner.http.delete(f"/datasets/{dataset}").status_code == 200
    dataset = owner.open_dataset()
    for sent in (True, False):
        upload = announce(owner, dataset, data).json()
        if sent:
            send(upload, data)
        expire(session_factory, upload, days=2)
        with session_factory.begin() as session:
            direct_uploads.forget_expired(session)
        orphans.sweep(session_factory, store, grace_seconds=7 * 24 * 3600)
        assert used(owner) == LIMIT, "it may still be in the store"
        orphans.sweep(session_factory, store, grace_seconds=3600)
        assert used(owner) == LIMIT - SHARD_BYTES
        with session_factory.begin() as session:
            direct_uploads.forget_expired(session)
            assert session.get(DirectUpload, upload["id"]) is None


def test_an_address_that_still_works_counts_though_its_data_set_is_deleted(
    owner: User, tmp_path: Path, session_factory: Sessions, store: ObjectStore
) -> None:
    dataset, data = owner.open_dataset(), a_shard(tmp_path)
    upload = announce(owner, dataset, data).json()
    assert owner.http.delete(f"/datasets/{dataset}").json()["state"] == "deleted"
    send(upload, data)
    assert used(owner) == SHARD_BYTES
    expire(session_factory, upload, seconds=1)
    for _ in range(2):
        orphans.sweep(session_factory, store, grace_seconds=0)
    assert used(owner) == 0
    assert not any(upload["id"] in key for key in store.keys("uploads"))


def test_uploads_of_one_owner_are_counted_over_all_data_sets(
    owner: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_uploads, "MAX_OPEN_OF_OWNER", 2)
    for _ in range(2):
        assert announce(owner, owner.open_dataset(), b"x").status_code == 201
    refused = announce(owner, owner.open_dataset(), b"x")
    assert problem_of(refused, 409, "conflict")["allowed"] == 2


def test_uploaded_checkpoints_count(
    cast: Cast, past: Past, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_owner = cast.party(Role.MODEL_OWNER)
    filled(model_owner, tmp_path, 3)
    dataset, model = past.sealed(model_owner), model_owner.model()
    file = weights_file(tmp_path / "good.safetensors", ENCODER)
    size, sha256 = file.stat().st_size, sha256_file(file)

    def upload() -> httpx.Response:
        return model_owner.http.post(
            f"/models/{model}/checkpoints",
            params={"dataset_ids": dataset},
            content=file.read_bytes(),
            headers={"Content-Digest": content_digest(sha256)},
        )

    assert upload().status_code == 202
    full = 3 * SHARD_BYTES + size
    assert used(model_owner) == full
    exceeded(upload(), used=full, asked=size)
    announced = {"bytes": size, "sha256": sha256, "part_bytes": 2**20, "parts": [sha256]}
    refused = model_owner.post(f"/models/{model}/checkpoints/parts", announced)
    exceeded(refused, used=full, asked=size)
    # As if it had looked before another was recorded.
    with monkeypatch.context() as patch:
        patch.setattr(quota, "room", lambda *_, **__: quota.ANY)
        exceeded(upload(), used=full, asked=size)
    assert used(model_owner) == full
    past.trained(model_owner, model_owner.model(), [dataset])
    assert used(model_owner) == full, "what jobs make does not count"


def test_below_a_lowered_limit_things_may_shrink_and_not_grow(
    owner: User, tmp_path: Path, session_factory: Sessions
) -> None:
    dataset = filled(owner, tmp_path, 2)
    with session_factory.begin() as session, quota.kept(session, owner.id, 10):
        session.get_one(Dataset, dataset).bytes -= 1
    with (
        pytest.raises(quota.QuotaExceeded),
        session_factory.begin() as session,
        quota.kept(session, owner.id, 10),
    ):
        session.get_one(Dataset, dataset).bytes += 1
    assert used(owner) == 2 * SHARD_BYTES - 1


def test_others_have_a_limit_of_their_own(owner: User, other_owner: User, tmp_path: Path) -> None:
    filled(owner, tmp_path)
    assert used(other_owner) == 0
    dataset = other_owner.open_dataset()
    assert other_owner.put_shard(dataset, a_shard(tmp_path)).status_code == 201


def test_who_stores_nothing_is_told_of_no_storage(cast: Cast, operator: User) -> None:
    assert operator.get("/me").json()["storage"] is None
    assert cast.party(Role.AUDITOR).get("/me").json()["storage"] is None
