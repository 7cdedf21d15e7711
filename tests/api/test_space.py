"""Uploads at once: so many of a key, and as many as the disk has room for; others come later."""

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from tests.api.conftest import User, images, left_behind, problem_of, shard_of
from tests.api.test_slow_clients import answer, connected, head

from expunge.api.space import KEPT_BYTES, NoSpace, Space
from expunge.formats.digests import content_digest, sha256_file
from expunge.registry.settings import Settings

OPEN = 2
NONE = "0" * 32
WAITING = {"Prefer": "wait=1"}
TOTAL = 100 * KEPT_BYTES


class Usage(NamedTuple):
    """What `shutil.disk_usage` gives."""

    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"open_calls_per_key": OPEN})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes uploads may have, beside those that stay free."""

    def set_(size: int, total: int = TOTAL) -> None:
        kept = min(KEPT_BYTES, total // 20)
        usage = Usage(total, total - size - kept, size + kept)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return set_


@contextmanager
def coming(
    url: str, settings: Settings, path: str, data: bytes, user: User
) -> Iterator[socket.socket]:
    """An upload of which half has been sent, whose file the service has begun."""
    begun = len(left_behind(settings))
    file = settings.work_dir.parent / "coming"
    file.write_bytes(data)
    digest = content_digest(sha256_file(file))
    start = head(
        "PUT", path, user, Content_Length=len(data), Content_Digest=digest, Connection="close"
    )
    with connected(url) as connection:
        connection.sendall(start + data[: len(data) // 2])
        eventually(lambda: len(left_behind(settings)) > begun)
        yield connection


@pytest.fixture
def some_coming(url: str, settings: Settings, model_owner: User) -> Iterator[Callable[[int], None]]:
    """Begins so many uploads of the model owner, which end with the test."""
    dataset = model_owner.open_dataset()
    with ExitStack() as stack:

        def begin(count: int) -> None:
            for number in range(count):
                path = f"/datasets/{dataset}/shards/{number}.tar"
                stack.enter_context(coming(url, settings, path, bytes(1000), model_owner))

        yield begin
    eventually(lambda: model_owner.put_shard(dataset, b"x").status_code == 422)


def eventually(is_so: Callable[[], bool]) -> None:
    """The service notices that a caller has left when it next looks."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"/datasets/dst_{NONE}/shards/a.tar"),
        ("POST", f"/models/mdl_{NONE}/checkpoints"),
        ("PUT", f"/models/mdl_{NONE}/checkpoints/parts/{NONE}{NONE}/{NONE}{NONE}"),
        ("POST", f"/encode/views?request_id=req_{NONE}"),
    ],
)
def test_one_upload_too_many_is_refused_and_says_why(
    model_owner: User, some_coming: Callable[[int], None], method: str, path: str
) -> None:
    some_coming(OPEN)
    digest = {"Content-Digest": content_digest(NONE * 2)}
    refused = model_owner.http.request(method, path, content=b"x", headers=digest)
    problem = problem_of(refused, 429, "too-many-open-calls")
    assert (problem["allowed"], problem["open"]) == (OPEN, OPEN)
    assert int(refused.headers["retry-after"]) > 0


def test_a_call_that_stays_open_for_two_reasons_has_one_place(
    model_owner: User, some_coming: Callable[[int], None]
) -> None:
    some_coming(OPEN - 1)
    body = {"bytes": 1, "sha256": NONE * 2, "part_bytes": 2**20, "parts": [NONE * 2]}
    path = f"/models/mdl_{NONE}/checkpoints/complete"
    problem_of(model_owner.post(path, body, headers=WAITING), 404, "not-found")


def test_two_that_fit_alone_but_not_together_come_one_after_the_other(
    url: str, settings: Settings, data_owner: User, tmp_path: Path, free: Callable[[int], None]
) -> None:
    shard = shard_of(tmp_path, images("a", 200)).read_bytes()
    first, second = data_owner.open_dataset(), data_owner.open_dataset()
    free(len(shard) * 3 // 2)
    with coming(url, settings, f"/datasets/{first}/shards/a.tar", shard, data_owner) as connection:
        refused = data_owner.put_shard(second, shard)
        assert "no room" in problem_of(refused, 503, "unavailable")["detail"]
        assert int(refused.headers["retry-after"]) > 0
        connection.sendall(shard[len(shard) // 2 :])
        assert answer(connection).startswith(b"HTTP/1.1 201 ")
    assert data_owner.put_shard(second, shard).status_code == 201
    assert left_behind(settings) == []


def test_what_announces_no_size_takes_no_room_of_others(
    url: str, settings: Settings, data_owner: User, tmp_path: Path, free: Callable[[int], None]
) -> None:
    shard = shard_of(tmp_path, images("a", 200)).read_bytes()
    dataset = data_owner.open_dataset()
    path = f"/datasets/{dataset}/shards/a.tar"

    def unannounced() -> int:
        digest = content_digest(sha256_file(tmp_path / "shard.tar"))
        headers = {"Content-Digest": digest}
        return data_owner.http.put(
            f"/datasets/{dataset}/shards/b.tar", content=iter([shard]), headers=headers
        ).status_code

    free(len(shard) * 3 // 2)
    with coming(url, settings, path, shard, data_owner):
        assert unannounced() == 503
    eventually(lambda: unannounced() == 201)


def test_a_file_counts_for_what_is_still_to_come(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    work = Space(tmp_path)
    file = tmp_path / "file"
    free(10 * 2**20)
    with work.held(file, 8 * 2**20):
        with pytest.raises(NoSpace), work.held(tmp_path / "other", 3 * 2**20):
            pytest.fail("no room")
        work.require(2 * 2**20)
        file.write_bytes(bytes(6 * 2**20))
        free(4 * 2**20)  # As the disk says now.
        work.require(2 * 2**20)
        with pytest.raises(NoSpace):
            work.require(3 * 2**20)
    work.require(4 * 2**20)


def test_a_file_that_fails_gives_its_room_back(tmp_path: Path, free: Callable[[int], None]) -> None:
    work = Space(tmp_path)
    free(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), work.held(tmp_path / "file", 10):
            raise ValueError("broken")


@pytest.mark.parametrize("total", [TOTAL, KEPT_BYTES])
def test_a_rest_of_the_disk_stays_free(
    tmp_path: Path, free: Callable[..., None], total: int
) -> None:
    free(0, total)
    with pytest.raises(NoSpace):
        Space(tmp_path).require(1)


def test_readiness_tells_when_the_largest_shard_has_no_room(
    anonymous: httpx.Client, settings: Settings, free: Callable[[int], None]
) -> None:
    def told() -> tuple[int, str]:
        answer = anonymous.get("/readyz")
        return answer.status_code, answer.json()["checks"]["work_dir"]

    free(settings.max_shard_bytes - 1)
    eventually(lambda: told() == (200, "warning"))
    free(settings.max_shard_bytes)
    eventually(lambda: told() == (200, "ok"))
