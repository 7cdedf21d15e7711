"""Both object stores keep the same promises; the S3 one against a real HTTP server (moto's)."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from expunge.formats.digests import sha256_file
from expunge.registry.objects import (
    PART_BYTES,
    DirectoryStore,
    ObjectDamaged,
    ObjectMissing,
    ObjectStore,
    S3Store,
    fetch,
    open_store,
    put_bytes,
    read_bytes,
)
from expunge.registry.settings import Settings

BUCKET = "expunge"
MISSING = "sha256/00/" + "0" * 64


def settings_of(address: str, **values: str) -> Settings:
    return Settings(
        database_url="postgresql+psycopg:///none",
        object_store=address,
        s3_endpoint=values.get("endpoint", ""),
        s3_access_key="key",
        s3_secret_key=SecretStr("secret"),
    )


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a running S3 server with one bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    client = Minio(
        endpoint=f"127.0.0.1:{port}", access_key="key", secret_key="secret", secure=False
    )
    client.make_bucket(bucket_name=BUCKET)
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return open_store(settings_of((tmp_path / "objects").as_uri()))
    endpoint = request.getfixturevalue("endpoint")
    return open_store(settings_of(f"s3://{BUCKET}", endpoint=endpoint))


def put(store: ObjectStore, path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return store.put(path, sha256_file(path))


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 9_000])
def test_what_is_put_comes_back(store: ObjectStore, tmp_path: Path, data: bytes) -> None:
    assert read_bytes(store, put(store, tmp_path / "file", data)) == data


def test_the_key_names_the_content(store: ObjectStore, tmp_path: Path) -> None:
    key = put(store, tmp_path / "file", b"content")
    assert key == "sha256/ed/ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert put_bytes(store, b"content", tmp_path) == key


def test_putting_again_changes_nothing(store: ObjectStore, tmp_path: Path) -> None:
    keys = {put(store, tmp_path / "file", b"same") for _ in range(3)}
    assert len(keys) == 1
    assert read_bytes(store, keys.pop()) == b"same"


def test_an_object_larger_than_one_part_arrives_whole(store: ObjectStore, tmp_path: Path) -> None:
    data = b"0123456789abcdef" * (PART_BYTES // 16) + b"end"
    key = put(store, tmp_path / "file", data)
    fetch(store, key, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_a_missing_object_is_said_to_be_missing(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing):
        read_bytes(store, MISSING)


def test_a_deleted_object_is_gone_and_deleting_again_is_no_error(
    store: ObjectStore, tmp_path: Path
) -> None:
    key = put(store, tmp_path / "file", b"to be erased")
    for _ in range(2):
        store.delete(key)
    with pytest.raises(ObjectMissing):
        read_bytes(store, key)


def test_ten_at_once_put_the_same_object(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"the same" * 10_000)
    sha256 = sha256_file(path)
    keys: list[str] = []
    threads = [
        threading.Thread(target=lambda: keys.append(store.put(path, sha256))) for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 10
    assert read_bytes(store, keys[0]) == path.read_bytes()


def test_a_usable_store_passes_its_check(store: ObjectStore) -> None:
    store.check()


def test_a_bucket_that_does_not_exist_fails_the_check(endpoint: str) -> None:
    store = S3Store(settings_of("s3://other", endpoint=endpoint), "other")
    with pytest.raises(Exception, match="'other' does not exist"):
        store.check()


def test_a_folder_that_is_gone_fails_the_check(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    (tmp_path / "objects").rmdir()
    with pytest.raises(PermissionError):
        store.check()


def test_a_damaged_object_is_not_handed_out(
    directory_store: DirectoryStore, tmp_path: Path
) -> None:
    key = put(directory_store, tmp_path / "file", b"whole")
    (tmp_path / "objects" / key).write_bytes(b"holed")
    with pytest.raises(ObjectDamaged):
        fetch(directory_store, key, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_half_written_object_is_never_seen(
    directory_store: DirectoryStore, tmp_path: Path
) -> None:
    """Whatever a crash leaves lies outside the keys."""
    with pytest.raises(FileNotFoundError):
        directory_store.put(tmp_path / "not there", "ab" * 32)
    with pytest.raises(ObjectMissing):
        read_bytes(directory_store, f"sha256/ab/{'ab' * 32}")


@pytest.mark.parametrize("address", ["file://relative", "s3://bucket", "http://x", "/folder", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="EXPUNGE_OBJECT_STORE must be"):
        open_store(settings_of(address))
