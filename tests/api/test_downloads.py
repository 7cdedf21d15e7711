"""Objects over HTTP: whole, in part, or not at all for who has them; the digest of all goes with each answer."""

import hashlib
import os
from collections.abc import Callable

import httpx
import pytest
from tests.api.conftest import Past, User, problem_of

from expunge.formats.digests import CHUNK_BYTES, content_digest
from expunge.registry.database import Sessions
from expunge.registry.objects import put_bytes
from expunge.registry.tables import Checkpoint

SIZE = 3 * CHUNK_BYTES + 17
Get = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def weights() -> bytes:
    """What stands for weights of several chunks."""
    return os.urandom(SIZE)


@pytest.fixture(scope="module")
def path(
    weights: bytes, model_owner: User, data_owner: User, past: Past, session_factory: Sessions
) -> str:
    """Address of a checkpoint's weights."""
    dataset_id = past.granted(data_owner, model_owner)
    checkpoint_id = past.trained(model_owner, model_owner.model(), [dataset_id])
    with session_factory.begin() as session:
        row = session.get_one(Checkpoint, checkpoint_id)
        row.release_key = put_bytes(past.store, weights, past.folder)
        row.release_digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    return f"/checkpoints/{checkpoint_id}/weights"


@pytest.fixture
def get(path: str, model_owner: User) -> Get:
    return lambda **headers: model_owner.get(path, headers=headers)


@pytest.fixture
def etag(weights: bytes) -> str:
    return f'"{hashlib.sha256(weights).hexdigest()}"'


def test_all_of_it_comes_with_its_size_and_digest(get: Get, weights: bytes, etag: str) -> None:
    answer = get()
    assert (answer.status_code, answer.content) == (200, weights)
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"] == etag
    expected = content_digest(hashlib.sha256(weights).hexdigest())
    assert answer.headers["repr-digest"] == answer.headers["content-digest"] == expected


@pytest.mark.parametrize("listed", ["{}", "W/{}", '"other", {}', "*"])
def test_who_has_it_is_not_sent_it_again(get: Get, etag: str, listed: str) -> None:
    answer = get(**{"If-None-Match": listed.format(etag)})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == etag
    assert "immutable" in answer.headers["cache-control"]


def test_who_has_another_is_sent_all(get: Get, weights: bytes) -> None:
    assert get(**{"If-None-Match": '"another"'}).content == weights


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, SIZE),
        (f"bytes={CHUNK_BYTES - 1}-{2 * CHUNK_BYTES}", CHUNK_BYTES - 1, 2 * CHUNK_BYTES + 1),
        (f"bytes={SIZE - 1}-{SIZE + 100}", SIZE - 1, SIZE),
        ("bytes=-20", SIZE - 20, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
    ],
)
def test_a_part_comes_alone(get: Get, weights: bytes, asked: str, start: int, end: int) -> None:
    answer = get(Range=asked)
    assert (answer.status_code, answer.content) == (206, weights[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert "content-digest" not in answer.headers, "it would be the part's"
    assert answer.headers["repr-digest"] == content_digest(hashlib.sha256(weights).hexdigest())


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "x"])
def test_what_is_no_single_part_is_all(get: Get, weights: bytes, asked: str) -> None:
    answer = get(Range=asked)
    assert (answer.status_code, answer.content) == (200, weights)


def test_a_part_of_something_else_is_all(get: Get, weights: bytes, etag: str) -> None:
    assert get(Range="bytes=5-", **{"If-Range": '"another"'}).content == weights
    assert get(Range="bytes=5-", **{"If-Range": etag}).content == weights[5:]


def test_a_part_behind_the_end_is_refused(get: Get) -> None:
    found = problem_of(get(Range=f"bytes={SIZE}-"), 416, "range-not-satisfiable")
    assert found["size"] == SIZE


def test_others_learn_nothing_from_what_they_claim_to_have(
    path: str, other_model_owner: User, etag: str
) -> None:
    answer = other_model_owner.get(path, headers={"If-None-Match": etag, "Range": "bytes=0-3"})
    problem_of(answer, 404, "not-found")
