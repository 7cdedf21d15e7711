"""A revoked key ends what it began: downloads, uploads and event streams that go on are broken off."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.conftest import Past, User, images, left_behind, shard_of
from tests.api.test_hardening import PROTECTING

from expunge.api.tenure import Tenure
from expunge.formats.digests import content_digest, sha256_file
from expunge.registry.database import Sessions
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.registry.tables import Checkpoint

BIG = 64 * 2**20
"""More than sockets and buffers hold."""
PIECE = 2**16


@pytest.fixture(autouse=True)
def always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tenure, "seconds", 0)


@pytest.fixture
def weights(
    past: Past, model_owner: User, session_factory: Sessions, settings: Settings, tmp_path: Path
) -> str:
    """A checkpoint of the model owner's with large weights; only its download looks at them."""
    model = model_owner.model()
    checkpoint = past.trained(model_owner, model, [past.sealed(model_owner)])
    file = tmp_path / "weights"
    file.write_bytes(bytes(BIG))
    key = open_store(settings).put(file, sha256_file(file))
    with session_factory.begin() as session:
        row = session.get_one(Checkpoint, checkpoint)
        row.release_key = key
        row.release_digest = f"sha256:{key.rpartition('/')[2]}"
    return f"/checkpoints/{checkpoint}/weights"


class Key:
    """Another key of a party, and its end."""

    def __init__(self, user: User, operator: User, url: str) -> None:
        self._user, self._url = user, url
        self.issued: dict[str, Any] = operator.post(f"/parties/{user.id}/keys").json()
        self.header = {"Authorization": f"Bearer {self.issued['secret']}"}

    def revoke(self) -> None:
        assert self._user.http.delete(f"/keys/{self.issued['id']}").status_code == 204

    def rotate(self) -> None:
        answer = httpx.post(
            f"{self._url}/keys/{self.issued['id']}/rotate",
            json={"overlap_hours": 0},
            headers=self.header,
            trust_env=False,
        )
        assert answer.status_code == 201, answer.text


def pieces(answer: httpx.Response) -> Iterator[bytes]:
    return answer.iter_bytes(PIECE)


@pytest.mark.parametrize("end", [Key.revoke, Key.rotate])
def test_a_download_breaks_off(
    model_owner: User, operator: User, url: str, weights: str, end: Any
) -> None:
    key = Key(model_owner, operator, url)
    with (
        httpx.Client(base_url=url, headers=key.header, trust_env=False, timeout=60) as http,
        http.stream("GET", weights) as answer,
    ):
        assert answer.status_code == 200
        assert PROTECTING.items() <= dict(answer.headers).items()
        coming = pieces(answer)
        next(coming)
        end(key)
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            list(coming)


def test_one_whose_key_lives_comes_to_its_end(model_owner: User, weights: str) -> None:
    with model_owner.http.stream("GET", weights) as answer:
        assert sum(map(len, pieces(answer))) == BIG


def test_an_upload_is_refused(
    data_owner: User, operator: User, url: str, tmp_path: Path, settings: Settings
) -> None:
    dataset = data_owner.open_dataset()
    body = shard_of(tmp_path, images("a", 3)).read_bytes()
    key = Key(data_owner, operator, url)
    head = (
        f"PUT /datasets/{dataset}/shards/a.tar HTTP/1.1\r\nHost: expunge\r\n"
        f"Authorization: {key.header['Authorization']}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Digest: {content_digest(hashlib.sha256(body).hexdigest())}\r\n\r\n"
    )
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=60) as connection:
        connection.sendall(head.encode() + body[:100])
        while not left_behind(settings):
            assert data_owner.get("/me").status_code == 200
        key.revoke()
        connection.sendall(body[100:])
        assert connection.recv(64).startswith(b"HTTP/1.1 401 ")
    assert data_owner.get(f"/datasets/{dataset}").json()["shards"] == []
    assert left_behind(settings) == []
