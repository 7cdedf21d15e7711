"""Large objects to and from S3: parts in bounded memory, sent again when they fail, nothing left behind."""

import base64
import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from minio import Minio
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from tests.registry.s3 import BUCKET, client_of, relay, settings_of, working_server

from expunge.formats.digests import sha256_file
from expunge.registry.objects import (
    PART_BYTES,
    ObjectDamaged,
    ObjectMissing,
    S3Store,
    StoreUnavailable,
    fetch,
)
from expunge.registry.objects.multipart import MAX_PARTS, part_bytes

MIB = 2**20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a running S3 server with one bucket."""
    with working_server() as address:
        yield address


@pytest.fixture(autouse=True)
def client(endpoint: str) -> Iterator[Minio]:
    """The server as somebody else sees it; afterwards the bucket is empty."""
    client = client_of(endpoint)
    yield client
    for found in client.list_objects(bucket_name=BUCKET, recursive=True):
        client.remove_object(bucket_name=BUCKET, object_name=found.object_name)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of two whole parts and a bit."""
    path = tmp_path / "large"
    path.write_bytes(b"".join(bytes([each]) * PART_BYTES for each in (1, 2)) + b"end")
    return path


def store_at(endpoint: str, **others: str) -> S3Store:
    settings = settings_of(f"s3://{BUCKET}", endpoint, **others)
    return S3Store(settings, BUCKET, pause_seconds=0.01)


def left_over(client: Minio) -> int:
    return len(client._list_multipart_uploads(BUCKET).uploads)


@pytest.mark.parametrize(
    ("size", "each"),
    [(0, 16 * MIB), (8 * 2**30, 16 * MIB), (200 * 2**30, 21 * MIB), (5 * 2**40, 525 * MIB)],
)
def test_parts_grow_with_the_file_so_that_there_are_never_too_many(size: int, each: int) -> None:
    assert part_bytes(size) == each
    assert size <= MAX_PARTS * each


@pytest.mark.parametrize("how", ["refuse", "reset"])
def test_a_part_that_fails_is_sent_again_and_no_other(
    endpoint: str, client: Minio, large: Path, how: str
) -> None:
    refusals = iter(range(3))

    def spoil(_: str, path: str) -> str | None:
        return how if "partNumber=2" in path and next(refusals, None) is not None else None

    with relay(endpoint, spoil) as between:
        store = store_at(between.endpoint)
        key = store.put(large, sha256_file(large))
        sent = [between.count("PUT", f"partNumber={each}&") for each in (1, 2, 3)]
    assert sent == [1, 4, 1]
    fetch(store_at(endpoint), key, large.with_name("copy"))
    assert left_over(client) == 0


def test_after_a_part_that_never_arrives_nothing_is_left(
    endpoint: str, client: Minio, large: Path
) -> None:
    def spoil(_: str, path: str) -> str | None:
        return "refuse" if "partNumber=3" in path else None

    with relay(endpoint, spoil) as between:
        store = store_at(between.endpoint)
        with pytest.raises(StoreUnavailable):
            store.put(large, sha256_file(large))
        assert between.count("PUT", "partNumber=3") > 5
        assert between.count("DELETE", "uploadId=") == 1
    assert left_over(client) == 0
    with pytest.raises(ObjectMissing):
        store_at(endpoint).size(f"sha256/{sha256_file(large)[:2]}/{sha256_file(large)}")


@pytest.mark.parametrize("how", ["fail late", "html"])
def test_parts_that_are_not_put_together_are_no_object(
    endpoint: str, client: Minio, large: Path, how: str
) -> None:
    """Servers answer 200 before they know whether it works."""

    def spoil(method: str, path: str) -> str | None:
        return how if method == "POST" and "uploadId=" in path else None

    with relay(endpoint, spoil) as between, pytest.raises(StoreUnavailable):
        store_at(between.endpoint).put(large, sha256_file(large))
    assert left_over(client) == 0
    assert list(store_at(endpoint).keys()) == []


def test_a_server_that_takes_no_part_is_not_asked_for_long(endpoint: str, large: Path) -> None:
    with relay(endpoint, lambda method, _: "refuse" if method == "PUT" else None) as between:
        with pytest.raises(StoreUnavailable):
            store_at(between.endpoint).put(large, sha256_file(large))
        assert between.count("PUT") in (1, 2), "the first part, perhaps once more"


@pytest.mark.parametrize("how", ["cut", "tear"])
def test_a_download_goes_on_where_it_broke_off(endpoint: str, large: Path, how: str) -> None:
    store_at(endpoint).put(large, sha256_file(large))
    cuts = iter(range(2))

    def spoil(method: str, _: str) -> str | None:
        return how if method == "GET" and next(cuts, None) is not None else None

    with relay(endpoint, spoil) as between:
        key = f"sha256/{sha256_file(large)[:2]}/{sha256_file(large)}"
        fetch(store_at(between.endpoint), key, large.with_name("copy"))
        assert between.count("GET") == 3
    assert sha256_file(large.with_name("copy")) == sha256_file(large)


def test_a_part_of_an_object_goes_on_where_it_broke_off(endpoint: str, large: Path) -> None:
    key = store_at(endpoint).put(large, sha256_file(large))
    cuts = iter(range(2))

    def spoil(method: str, _: str) -> str | None:
        return "cut" if method == "GET" and next(cuts, None) is not None else None

    with relay(endpoint, spoil) as between:
        found = b"".join(store_at(between.endpoint).stream(key, 5, PART_BYTES))
        assert between.count("GET") == 3
    assert found == bytes([1]) * (PART_BYTES - 5) + bytes([2]) * 5


def test_what_was_changed_on_the_way_is_noticed(
    endpoint: str, client: Minio, tmp_path: Path, large: Path
) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"sent")
    with relay(endpoint, lambda method, _: "alter" if method == "PUT" else None) as between:
        for path in (small, large):
            with pytest.raises(StoreUnavailable, match="received other bytes"):
                store_at(between.endpoint).put(path, sha256_file(path))
    assert left_over(client) == 0


def test_bytes_that_change_on_the_way_are_not_what_is_handed_out(
    endpoint: str, tmp_path: Path
) -> None:
    """Servers that compare refuse them; from one that does not (moto's), what is read is compared."""
    path = tmp_path / "file"
    path.write_bytes(b"sent")
    with relay(endpoint, lambda method, _: "corrupt" if method == "PUT" else None) as between:
        store = store_at(between.endpoint)
        try:
            key = store.put(path, sha256_file(path))
        except StoreUnavailable:
            return
        with pytest.raises(ObjectDamaged):
            fetch(store, key, tmp_path / "copy")


def test_what_is_signed_is_the_digest_of_the_body(endpoint: str, large: Path) -> None:
    """Once computed, for the signature and for the server."""
    with relay(endpoint, lambda *_: None) as between:
        store_at(between.endpoint).put(large, sha256_file(large))
        sent = [each for each in between.headers if "x-amz-checksum-sha256" in map(str.lower, each)]
    lowered = [{name.lower(): value for name, value in each.items()} for each in sent]
    assert len(lowered) == 3
    for headers in lowered:
        checksum = base64.b64decode(headers["x-amz-checksum-sha256"]).hex()
        assert headers["x-amz-content-sha256"] == checksum


def test_the_server_is_told_the_digest_of_what_it_gets(endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"sent")
    key = store_at(endpoint).put(path, sha256_file(path))
    stored = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(BUCKET, key)
    assert stored is not None
    assert stored.checksum_value == base64.b64encode(hashlib.sha256(b"sent").digest()).decode()


def test_parts_that_a_killed_process_left_are_removed_once_they_are_old(
    endpoint: str, client: Minio
) -> None:
    store = store_at(endpoint)
    client._create_multipart_upload(BUCKET, "sha256/ab/left", {})
    upload_id = client._create_multipart_upload(BUCKET, "sha256/ab/written", {})
    client._upload_part(BUCKET, "sha256/ab/written", b"just now", None, upload_id, 1)
    assert store.clean(3600) == 1, "the other one's part is new"
    assert left_over(client) == 1
    assert store.clean(-3600) == 1
    assert left_over(client) == 0


PAGE = """<?xml version="1.0"?><ListMultipartUploadsResult><Bucket>expunge</Bucket>
<IsTruncated>{truncated}</IsTruncated><NextKeyMarker>{last}</NextKeyMarker>
<NextUploadIdMarker>1</NextUploadIdMarker><Upload><Key>{last}</Key><UploadId>1</UploadId>
<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>"""


def test_unfinished_uploads_are_listed_page_by_page() -> None:
    """Moto's server has one page only."""
    asked: list[str | None] = []

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            marker = parse_qs(urlsplit(self.path).query).get("key-marker", [None])[0]
            asked.append(marker)
            last = {None: "a", "a": "b", "b": "c"}[marker]
            body = PAGE.format(truncated=str(last != "c").lower(), last=last).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        store = store_at(f"http://127.0.0.1:{server.server_port}")
        found = [each.key for each in store._client.unfinished()]
        server.shutdown()
        thread.join()
    assert found == ["a", "b", "c"]
    assert asked == [None, "a", "b"]


MEASURED = """
import resource, sys
from pathlib import Path
from expunge.formats.digests import sha256_file
from expunge.registry.objects import S3Store, fetch
from tests.registry.s3 import BUCKET, settings_of
store = S3Store(settings_of(f"s3://{BUCKET}", sys.argv[1]), BUCKET)
file, copy = Path(sys.argv[2]), Path(sys.argv[3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fetch(store, store.put(file, sha256_file(file)), copy)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
"""Puts a file, fetches it again, and prints by how many KiB its memory grew."""


def test_memory_is_that_of_a_part_whatever_the_size_of_the_file(
    endpoint: str, client: Minio, tmp_path: Path
) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(6 * PART_BYTES)
    arguments = [endpoint, str(tmp_path / "file"), str(tmp_path / "copy")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy").stat().st_size == 6 * PART_BYTES
    assert int(done.stdout) * 1024 < 3 * PART_BYTES
    assert left_over(client) == 0
