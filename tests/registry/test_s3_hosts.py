"""A server that finds the bucket in the host's name: what the store does, over HTTP, without the bucket in any path."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.registry.s3 import BUCKET, Relay, relay, settings_of, working_server

from expunge.formats.digests import sha256_file
from expunge.registry.objects import PART_BYTES, ObjectMissing, S3Store, fetch, put_bytes

NAME = "localhost"


@pytest.fixture(autouse=True)
def below_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names below localhost are this machine (RFC 6761), which not every resolver knows."""
    known = socket.getaddrinfo

    def getaddrinfo(host: Any, *others: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        return known("127.0.0.1" if name.endswith(NAME) else host, *others, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def server() -> Iterator[Relay]:
    with (
        working_server() as endpoint,
        relay(endpoint.replace("127.0.0.1", NAME), lambda *_: None) as between,
    ):
        yield between


def test_an_object_is_put_read_listed_and_deleted(server: Relay, tmp_path: Path) -> None:
    address = server.endpoint.replace("127.0.0.1", NAME)
    settings = settings_of(
        f"s3://{BUCKET}", address, s3_addressing="virtual", s3_public_endpoint=address
    )
    store = S3Store(settings, BUCKET)
    store.check()
    small = put_bytes(store, b"0123456789", tmp_path)
    (tmp_path / "file").write_bytes(b"x" * (PART_BYTES + 1))
    large = store.put(tmp_path / "file", sha256_file(tmp_path / "file"))
    fetch(store, large, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == PART_BYTES + 1
    assert store.part(small, 3, 4) == b"3456"

    sent = store.direct_put("uploads/upl_1/x", 4, hashlib.sha256(b"test").hexdigest(), 60)
    assert sent is not None
    answer = httpx.put(sent.url, content=b"test", headers=sent.headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert set(store.keys()) == {small, large, "uploads/upl_1/x"}
    assert list(store.keys("uploads/upl_1")) == ["uploads/upl_1/x"]

    assert store.clean(0) == 0
    for key in list(store.keys()):
        store.delete(key)
        with pytest.raises(ObjectMissing):
            store.size(key)
    assert {each["Host"].partition(":")[0] for each in server.headers} == {f"{BUCKET}.{NAME}"}
    assert not any(path.startswith(f"/{BUCKET}") for _, path in server.asked)
