"""Both object stores keep the same promises; the S3 one against a real HTTP server (moto's)."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from tests.registry.s3 import (
    ANSWERS,
    BUCKET,
    client_of,
    failing_server,
    settings_of,
    working_server,
)

from expunge.formats.digests import CHUNK_BYTES, sha256_file
from expunge.registry.objects import (
    PART_BYTES,
    DirectoryStore,
    ObjectDamaged,
    ObjectMissing,
    ObjectStore,
    S3Store,
    StoreUnavailable,
    fetch,
    open_store,
    put_bytes,
    read_bytes,
    verified,
)

MISSING = "sha256/00/" + "0" * 64


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a running S3 server with one bucket."""
    with working_server() as address:
        yield address


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """An empty store of either kind."""
    if request.param == "directory":
        yield open_store(settings_of((tmp_path / "objects").as_uri()))
        return
    endpoint = request.getfixturevalue("endpoint")
    yield open_store(settings_of(f"s3://{BUCKET}", endpoint))
    client = client_of(endpoint)
    for found in client.list_objects(bucket_name=BUCKET, recursive=True):
        client.remove_object(bucket_name=BUCKET, object_name=found.object_name)


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
    with pytest.raises(ObjectMissing):
        store.part(MISSING, 0, 1)


@pytest.mark.parametrize(("start", "size"), [(0, 4), (3, 5), (9_998, 2), (9_998, 100)])
def test_a_part_of_an_object_is_read_alone(
    store: ObjectStore, tmp_path: Path, start: int, size: int
) -> None:
    data = bytes(range(250)) * 40
    key = put(store, tmp_path / "file", data)
    assert store.part(key, start, size) == data[start : start + size]


@pytest.mark.parametrize(
    ("start", "size"), [(0, 4), (3, CHUNK_BYTES), (7, None), (2 * CHUNK_BYTES, 9), (0, None)]
)
def test_an_object_is_streamed_from_any_byte_on(
    store: ObjectStore, tmp_path: Path, start: int, size: int | None
) -> None:
    data = bytes(range(250)) * (2 * CHUNK_BYTES // 250) + b"rest" * 100
    key = put(store, tmp_path / "file", data)
    end = None if size is None else start + size
    assert b"".join(store.stream(key, start, size)) == data[start:end]


def test_a_folder_is_listed_alone(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"part")
    mine = {store.put(path, sha256_file(path), under=f"uploads/a/{each}") for each in "xy"}
    store.put(path, sha256_file(path), under="uploads/ab/x")
    assert set(store.keys("uploads/a")) == mine
    assert list(store.keys("uploads/c")) == []


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
    with ThreadPoolExecutor(10) as pool:
        keys = list(pool.map(lambda _: store.put(path, sha256), range(10)))
    assert len(keys) == 10
    assert read_bytes(store, keys[0]) == path.read_bytes()


def test_a_usable_store_passes_its_check(store: ObjectStore) -> None:
    store.check()


def test_a_bucket_that_does_not_exist_fails_the_check(endpoint: str) -> None:
    store = S3Store(settings_of("s3://other", endpoint), "other")
    with pytest.raises(StoreUnavailable, match="'other' does not exist"):
        store.check()


def test_a_damaged_object_is_not_handed_out(
    directory_store: DirectoryStore, tmp_path: Path
) -> None:
    whole = b"whole" * CHUNK_BYTES
    key = put(directory_store, tmp_path / "file", whole)
    (tmp_path / "objects" / key).write_bytes(whole[:-1] + b"!")
    with pytest.raises(ObjectDamaged):
        fetch(directory_store, key, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(ObjectDamaged):
        read_bytes(directory_store, key)
    chunks = verified(directory_store, key)
    assert sum(len(next(chunks)) for _ in range(4)) == len(whole) - CHUNK_BYTES
    with pytest.raises(ObjectDamaged):
        next(chunks)


@pytest.mark.parametrize("address", ["file://relative", "s3://bucket", "http://x", "/folder", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="EXPUNGE_OBJECT_STORE must be"):
        open_store(settings_of(address))


def test_an_object_may_lie_under_another_name_than_its_content_s(
    store: ObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"snapshot")
    key = store.put(path, sha256_file(path), under="snapshots/job_1/token")
    assert key == f"snapshots/job_1/token/{sha256_file(path)}"
    assert read_bytes(store, key) == b"snapshot"


def test_the_size_is_that_of_the_content(store: ObjectStore, tmp_path: Path) -> None:
    assert store.size(put(store, tmp_path / "file", b"12345")) == 5
    with pytest.raises(ObjectMissing):
        store.size(MISSING)


def test_all_objects_are_listed_and_nothing_else(store: ObjectStore, tmp_path: Path) -> None:
    keys = {put(store, tmp_path / "file", str(each).encode()) for each in range(20)}
    keys.add(store.put(tmp_path / "file", sha256_file(tmp_path / "file"), under="a/b/c"))
    listed = list(store.keys())
    assert len(listed) == len(keys)
    assert set(listed) == keys
    assert list(iter(store.keys())) == listed


def test_a_listing_goes_on_after_the_server_s_first_page(endpoint: str) -> None:
    store = S3Store(settings_of(f"s3://{BUCKET}", endpoint), BUCKET)
    keys = [f"sha256/00/{each:064}" for each in range(1_001)]
    server = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for key in keys:
        server.put_object(BUCKET, key, b"")
    assert list(store.keys()) == keys
    for key in keys:
        server.delete_object(BUCKET, key)


def test_an_empty_store_lists_nothing(store: ObjectStore) -> None:
    assert list(store.keys()) == []


def test_an_object_of_another_size_than_its_file_is_replaced(
    directory_store: DirectoryStore, tmp_path: Path
) -> None:
    key = put(directory_store, tmp_path / "file", b"whole")
    (tmp_path / "objects" / key).write_bytes(b"half")
    assert put(directory_store, tmp_path / "file", b"whole") == key
    assert read_bytes(directory_store, key) == b"whole"


class TestFetch:
    """A copy of an object in a file."""

    def test_a_check_between_chunks_abandons_it(self, store: ObjectStore, tmp_path: Path) -> None:
        key = put(store, tmp_path / "file", b"x" * 3 * 2**20)
        calls = iter(range(2))

        def check() -> None:
            if next(calls, None) is None:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            fetch(store, key, tmp_path / "copy", check=check)
        assert not (tmp_path / "copy").exists()

    def test_of_a_missing_object_leaves_no_file(self, store: ObjectStore, tmp_path: Path) -> None:
        with pytest.raises(ObjectMissing):
            fetch(store, MISSING, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


CALLS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "put": lambda store, file: store.put(file, sha256_file(file)),
    "stream": lambda store, _: read_bytes(store, MISSING),
    "size": lambda store, _: store.size(MISSING),
    "keys": lambda store, _: list(store.keys()),
    "delete": lambda store, _: store.delete(MISSING),
    "check": lambda store, _: store.check(),
}


class TestUnavailableServer:
    """Whatever keeps an S3 server from answering is one exception, soon."""

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize("failure", ["refused", "stalls", *ANSWERS])
    def test_every_call_says_so(self, failure: str, call: str, tmp_path: Path) -> None:
        if failure in ("no S3 at all", "bucket gone") and call == "size":
            pytest.skip("an answer without a body says as little as that of a missing object")
        (tmp_path / "file").write_bytes(b"content")
        with failing_server(failure) as endpoint:
            store = S3Store(settings_of(f"s3://{BUCKET}", endpoint), BUCKET, read_seconds=0.1)
            with pytest.raises(StoreUnavailable):
                CALLS[call](store, tmp_path / "file")

    @pytest.mark.parametrize("call", ["stream", "keys"])
    def test_an_answer_that_breaks_off_is_no_answer(self, call: str, tmp_path: Path) -> None:
        with failing_server("breaks") as endpoint:
            store = S3Store(settings_of(f"s3://{BUCKET}", endpoint), BUCKET)
            with pytest.raises(StoreUnavailable):
                CALLS[call](store, tmp_path)

    def test_a_broken_fetch_leaves_no_file(self, tmp_path: Path) -> None:
        with failing_server("breaks") as endpoint:
            store = S3Store(settings_of(f"s3://{BUCKET}", endpoint), BUCKET)
            with pytest.raises(StoreUnavailable):
                fetch(store, MISSING, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


LIMITED = """
import resource, sys
from pathlib import Path
from expunge.registry.objects import DirectoryStore, StoreUnavailable
root, file = Path(sys.argv[1]), Path(sys.argv[2])
store = DirectoryStore(root)
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    store.put(file, "ab" * 32)
except StoreUnavailable:
    print("unavailable", list(store.keys()), list((root / "incoming").iterdir()))
"""
"""Puts a file and prints what became of it."""
MOUNTED = 'mount -t tmpfs -o size=64k none "$2" && mkdir "$2/incoming" && $4 && "$0" -c "$1" "$2" "$3" mounted'


class TestUnavailableDirectory:
    """A full, limited, read-only or missing file system."""

    def test_a_limit_on_the_size_of_files(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * 100_000)
        arguments = [str(tmp_path / "objects"), str(tmp_path / "file"), "limit"]
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False
        )
        assert done.stdout == "unavailable [] []\n", done.stderr

    @pytest.mark.parametrize("state", ["full", "read-only"])
    def test_a_file_system_of_its_own(self, state: str, tmp_path: Path) -> None:
        inside = ["unshare", "--user", "--map-root-user", "--mount"]
        if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine allows no mounts of one's own")
        (tmp_path / "file").write_bytes(b"x" * 100_000)
        (tmp_path / "mount").mkdir()
        prepare = f"mount -o remount,ro {tmp_path / 'mount'}" if state == "read-only" else "true"
        arguments = [str(tmp_path / "mount"), str(tmp_path / "file"), prepare]
        done = subprocess.run(
            [*inside, "sh", "-c", MOUNTED, sys.executable, LIMITED, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "unavailable [] []\n", done.stderr

    @pytest.mark.parametrize("call", [call for call in CALLS if call != "delete"])
    def test_a_directory_that_is_not_mounted_has_not_lost_its_objects(
        self, call: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"content")
        store = DirectoryStore(tmp_path / "objects")
        (tmp_path / "objects").rename(tmp_path / "elsewhere")
        (tmp_path / "objects").mkdir()
        with pytest.raises(StoreUnavailable):
            CALLS[call](store, tmp_path / "file")


class TestDirectoryStore:
    """What only a directory can get wrong."""

    def test_a_half_written_object_is_never_seen(
        self, directory_store: DirectoryStore, tmp_path: Path
    ) -> None:
        """What a crash in the middle of a put leaves lies where no key leads."""
        (tmp_path / "objects" / "incoming" / "tmp1").write_bytes(b"hal")
        assert list(directory_store.keys()) == []

    def test_what_broken_puts_left_is_removed_once_it_is_old(
        self, directory_store: DirectoryStore, tmp_path: Path
    ) -> None:
        key = put(directory_store, tmp_path / "file", b"whole")
        old, new = (tmp_path / "objects" / "incoming" / name for name in ("old", "new"))
        for file in (old, new):
            file.write_bytes(b"hal")
        os.utime(old, (0, time.time() - 100))
        assert directory_store.clean(60) == 1
        assert (old.exists(), new.exists()) == (False, True)
        assert list(directory_store.keys()) == [key]

    def test_a_file_that_is_not_there_leaves_nothing(
        self, directory_store: DirectoryStore, tmp_path: Path
    ) -> None:
        with pytest.raises(FileNotFoundError):
            directory_store.put(tmp_path / "not there", "ab" * 32)
        assert list((tmp_path / "objects" / "incoming").iterdir()) == []

    def test_folders_without_objects_are_removed(
        self, directory_store: DirectoryStore, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x")
        directory_store.delete(directory_store.put(path, sha256_file(path), under="a/b"))
        assert [each.name for each in (tmp_path / "objects").iterdir()] == ["incoming"]

    def test_puts_and_deletes_of_one_folder_do_not_disturb_each_other(
        self, directory_store: DirectoryStore, tmp_path: Path
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"x")
        sha256 = sha256_file(path)
        failures: list[BaseException] = []

        def work(own: int) -> None:
            try:
                for _ in range(100):
                    key = directory_store.put(path, sha256, under=f"a/{own}")
                    assert read_bytes(directory_store, key) == b"x"
                    list(directory_store.keys())
                    directory_store.delete(key)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert list(directory_store.keys()) == []
