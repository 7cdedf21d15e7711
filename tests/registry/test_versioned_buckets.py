"""A bucket that keeps versions hides what is deleted: no check passes, and nothing of it is said to be destroyed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio
from minio.commonconfig import ENABLED
from minio.versioningconfig import SUSPENDED, VersioningConfig
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from tests.registry.conftest import House
from tests.registry.s3 import DENIED, client_of, relay, settings_of, working_server

from expunge.registry import datasets, deletion, destruction, orphans
from expunge.registry.objects import ObjectMissing, S3Store, StoreUnavailable, put_bytes
from expunge.registry.objects.s3_client import S3Client
from expunge.registry.tables import Dataset, Role
from expunge.registry.transitions import move

KEPT = "versioned"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with working_server() as address:
        client_of(address).make_bucket(bucket_name=KEPT)
        yield address


@pytest.fixture
def client(endpoint: str) -> Minio:
    """The server as its operator sees it, who has just switched versioning on."""
    client = client_of(endpoint)
    switch(client, ENABLED)
    return client


def switch(client: Minio, status: str) -> None:
    client.set_bucket_versioning(bucket_name=KEPT, config=VersioningConfig(status))


def store_at(endpoint: str) -> S3Store:
    return S3Store(settings_of(f"s3://{KEPT}", endpoint), KEPT, pause_seconds=0.01)


@pytest.mark.parametrize("status", [ENABLED, SUSPENDED])
def test_it_fails_the_check_and_says_why(endpoint: str, client: Minio, status: str) -> None:
    switch(client, status)
    with pytest.raises(StoreUnavailable, match=f"hidden, not gone .versioning {status}"):
        store_at(endpoint).check()


@pytest.mark.parametrize("code", DENIED)
def test_a_server_that_does_not_say_passes_the_check(
    endpoint: str, client: Minio, code: str
) -> None:
    assert client.get_bucket_versioning(bucket_name=KEPT).status == ENABLED
    with relay(endpoint, lambda _, path: code if "versioning" in path else None) as between:
        store_at(between.endpoint).check()


def test_one_that_is_away_does_not(endpoint: str, client: Minio) -> None:
    assert client.bucket_exists(bucket_name=KEPT)
    with (
        relay(endpoint, lambda _, path: "refuse" if "versioning" in path else None) as between,
        pytest.raises(StoreUnavailable, match="503"),
    ):
        store_at(between.endpoint).check()


def test_a_hidden_object_is_neither_deleted_nor_missing(
    endpoint: str, client: Minio, tmp_path: Path
) -> None:
    assert client.get_bucket_versioning(bucket_name=KEPT).status == ENABLED
    store = store_at(endpoint)
    key = put_bytes(store, b"to be forgotten", tmp_path)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="hidden, not gone"):
            store.delete(key)
        with pytest.raises(StoreUnavailable, match="hidden, not gone"):
            store.size(key)


def test_a_sweep_goes_on_once_the_versions_are_gone(
    endpoint: str, client: Minio, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(endpoint)
    key = orphans.put_bytes(house.sessions, store, b"of nobody", tmp_path)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="hidden, not gone"):
            orphans.sweep(house.sessions, store, grace_seconds=0)
    purge(client, key)
    # S3 leaves a marker of what was not there, too; moto does not.
    monkeypatch.setattr(S3Client, "remove", lambda *_: False)
    assert key in orphans.sweep(house.sessions, store, grace_seconds=0).removed
    assert key not in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[KEPT].keys


def purge(client: Minio, key: str) -> None:
    """What an operator does who wants an object gone: all its versions, and what hides it."""
    versions = client.list_objects(
        bucket_name=KEPT, prefix=key, recursive=True, include_version=True
    )
    for each in list(versions):
        client.remove_object(bucket_name=KEPT, object_name=key, version_id=each.version_id)


def test_a_destruction_does_not_end_before_the_versions_are_gone(
    endpoint: str, client: Minio, house: House, tmp_path: Path
) -> None:
    store, owner = store_at(endpoint), house.party(Role.DATA_OWNER)
    key = orphans.put_bytes(house.sessions, store, b"an index", tmp_path)
    with house.sessions.begin() as session:
        row = datasets.create(session, owner, "images")
        move(session, row, "sealing")
        move(session, row, "sealed", digest="sha256:0", index_key=key)
        orphans.named(session, [key])
    with house.sessions.begin() as session:
        deletion.start(session, owner, row.id)

    def state() -> str:
        with house.sessions() as session:
            return session.get_one(Dataset, row.id).state

    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="hidden, not gone"):
            destruction.finish(house.sessions, store, row.id)
        assert state() == "deleting"
    purge(client, key)
    with pytest.raises(ObjectMissing):
        store.size(key)
    assert destruction.finish(house.sessions, store, row.id)
    assert state() == "deleted"
    assert key not in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[KEPT].keys
