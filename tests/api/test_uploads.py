"""Shards over HTTP: what is stored, what is refused, and that a refusal changes nothing."""

import io
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import MAX_SHARD_BYTES, User, images, left_behind, problem_of, shard_of

from expunge.client import Client, ProblemError
from expunge.client import datasets as client_datasets
from expunge.formats.digests import content_digest, sha256_file
from expunge.formats.shards import make_sample
from expunge.registry.settings import Settings


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


PNG = images("x", 1)[0].image

GIANT_EXTENSION = tar_of(("a.png", bytes(100_000)), kind=tarfile.XHDTYPE)

REFUSED_AT_ONCE: dict[str, tuple[bytes, str, str]] = {
    "no tar": (b"certainly not a tar archive" * 100, "not-a-tar", "not an uncompressed tar"),
    "nothing": (b"", "not-a-tar", "tar"),
    "cut in a member": (tar_of(("a.png", PNG))[:700], "truncated", "ends inside 'a.png'"),
    "cut before the end": (tar_of(("a.png", PNG))[: 512 + 1024], "truncated", "end marker"),
    "parent folder": (tar_of(("../a.png", PNG)), "unsafe-name", "'../a.png'"),
    "parent folder inside": (tar_of(("x/../../a.png", PNG)), "unsafe-name", "leaves the archive"),
    "absolute": (tar_of(("/etc/a.png", PNG)), "unsafe-name", "'/etc/a.png'"),
    "unknown suffix": (tar_of(("a.pkl", b"x")), "unknown-suffix", "allowed are .jpg, .png, .webp"),
    "pickled second suffix": (tar_of(("a.pkl.png", PNG)), "unknown-suffix", "'a.pkl.png'"),
    "duplicate key": (
        tar_of(("a.png", PNG), ("b.png", PNG), ("a.png", PNG)),
        "duplicate-key",
        "'a'",
    ),
    "duplicate file": (tar_of(("a.png", PNG), ("a.png", PNG)), "duplicate-key", "a.png"),
    "label without image": (tar_of(("a.cls", b"3")), "missing-image", "'a' has no image"),
    "two images": (tar_of(("a.png", PNG), ("a.jpg", PNG)), "missing-image", "several images"),
    "link": (tar_of(("a.png", b""), kind=tarfile.SYMTYPE), "not-a-file", "'a.png'"),
    "extension without end": (GIANT_EXTENSION, "too-large", "at most 16,384"),
    "no sample": (tar_of(), "empty", "no sample"),
}


@pytest.fixture
def dataset_id(data_owner: User) -> str:
    return data_owner.open_dataset()


@pytest.fixture
def unchanged(data_owner: User, dataset_id: str, settings: Settings) -> Callable[[], None]:
    """Checks that the data set is as it was, and that no temporary file is left."""
    before = data_owner.get(f"/datasets/{dataset_id}").json()

    def check() -> None:
        assert data_owner.get(f"/datasets/{dataset_id}").json() == before
        assert left_behind(settings) == []

    return check


def test_a_shard_is_stored_and_described(
    data_owner: User, dataset_id: str, tmp_path: Path, settings: Settings
) -> None:
    path = shard_of(tmp_path, images("a", 3))
    answer = data_owner.put_shard(dataset_id, path)
    assert answer.status_code == 201
    shard = answer.json()
    assert (shard["name"], shard["samples"], shard["bytes"]) == (
        "train-00.tar",
        3,
        path.stat().st_size,
    )
    assert shard["digest"].startswith("sha256:")
    dataset = data_owner.get(f"/datasets/{dataset_id}").json()
    assert dataset["shards"] == [shard]
    assert (dataset["state"], dataset["samples"]) == ("open", 3)
    assert left_behind(settings) == []


def test_the_same_name_again_replaces_the_shard(
    data_owner: User, dataset_id: str, tmp_path: Path
) -> None:
    data_owner.put_shard(dataset_id, shard_of(tmp_path, images("a", 3)))
    data_owner.put_shard(dataset_id, shard_of(tmp_path, images("b", 5, seed=1)))
    data_owner.put_shard(dataset_id, shard_of(tmp_path, images("c", 2)), name="train-01.tar")
    dataset = data_owner.get(f"/datasets/{dataset_id}").json()
    assert [each["samples"] for each in dataset["shards"]] == [5, 2]
    assert dataset["samples"] == 7


def test_a_store_that_takes_nothing_from_owners_is_reached_through_the_service(
    data_owner: User, url: str, dataset_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_datasets, "DIRECT_FROM_BYTES", 0)
    path = shard_of(tmp_path, images("a", 3))
    body = {"name": "a.tar", "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    answer = data_owner.post(f"/datasets/{dataset_id}/uploads", body)
    problem = problem_of(answer, 409, "direct-upload-unavailable")
    assert f"PUT the shard to /datasets/{dataset_id}/shards/a.tar" in problem["detail"]
    key = data_owner.http.headers["Authorization"].removeprefix("Bearer ")
    with Client(url, key) as client:
        assert client.upload_shard(dataset_id, path).samples == 3
        with pytest.raises(ProblemError, match="This store takes uploads through the service"):
            client.upload_shard(dataset_id, path, direct=True)


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
def test_a_shard_that_breaks_the_format_is_refused(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None], case: str
) -> None:
    data, code, said = REFUSED_AT_ONCE[case]
    problem = problem_of(data_owner.put_shard(dataset_id, data), 422, "invalid-shard")
    assert problem["code"] == code
    assert said in problem["detail"]
    assert "train-00.tar" in problem["detail"]
    unchanged()


def test_a_wrong_digest_is_refused(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None], tmp_path: Path
) -> None:
    path = shard_of(tmp_path, images("a", 2))
    answer = data_owner.put_shard(dataset_id, path, **{"Content-Digest": content_digest("0" * 64)})
    problem = problem_of(answer, 422, "digest-mismatch")
    assert "0" * 64 in problem["detail"]
    unchanged()


@pytest.mark.parametrize("header", [None, "", "sha-256=abc", "sha-256=:YQ==:", "md5=:YQ==:"])
def test_a_missing_or_malformed_digest_is_refused(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None], header: str | None
) -> None:
    answer = data_owner.http.put(
        f"/datasets/{dataset_id}/shards/a.tar",
        content=b"x",
        headers={} if header is None else {"Content-Digest": header},
    )
    problem = problem_of(answer, 400, "content-digest-needed")
    assert "Content-Digest: sha-256=:<base64 of 32 bytes>:" in problem["detail"]
    unchanged()


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None], *, announced: bool
) -> None:
    data = bytes(3 * MAX_SHARD_BYTES)
    answer = data_owner.http.put(
        f"/datasets/{dataset_id}/shards/a.tar",
        content=data if announced else iter([data[: len(data) // 2]] * 2),
        headers={"Content-Digest": content_digest("0" * 64)},
    )
    problem = problem_of(answer, 413, "content-too-large")
    assert problem["limit"] == MAX_SHARD_BYTES
    unchanged()


@pytest.mark.parametrize(
    "name", ["a.zip", ".tar", ".a.tar", "a b.tar", "a" * 101 + ".tar", "é.tar"]
)
def test_a_shard_name_that_is_not_plain_is_refused(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None], name: str
) -> None:
    problem = problem_of(data_owner.put_shard(dataset_id, PNG, name=name), 422, "invalid-shard")
    assert problem["code"] == "unsafe-name"
    unchanged()


@pytest.mark.parametrize("name", ["..%2F..%2Fa.tar", "%2Fetc%2Fa.tar", "a%00.tar"])
def test_a_shard_name_that_is_a_path_reaches_nothing(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None], name: str
) -> None:
    assert data_owner.put_shard(dataset_id, PNG, name=name).status_code in (404, 422)
    unchanged()


def test_a_connection_that_breaks_off_leaves_nothing(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None]
) -> None:
    class Interrupted(Exception):
        pass

    def body() -> Any:
        yield b"x" * 100_000
        raise Interrupted

    with pytest.raises(Interrupted):
        data_owner.http.put(
            f"/datasets/{dataset_id}/shards/a.tar",
            content=body(),
            headers={"Content-Digest": content_digest("0" * 64)},
        )
    eventually_unchanged(unchanged)


def eventually_unchanged(check: Callable[[], None]) -> None:
    """The server notices a broken connection a moment later."""
    for attempt in range(100):
        try:
            return check()
        except AssertionError:
            if attempt == 99:
                raise
            threading.Event().wait(0.02)
    return None


@pytest.mark.usefixtures("worker")
class TestSealing:
    """What only decoding can tell."""

    def seal(self, user: User, dataset_id: str) -> dict[str, Any]:
        answer = user.post(f"/datasets/{dataset_id}/seal", headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
        dataset: dict[str, Any] = answer.json()
        return dataset

    def test_sealing_fixes_digest_and_samples(self, data_owner: User, dataset_id: str) -> None:
        samples = [make_sample("a", "png", PNG, label=7, caption="a cat"), *images("b", 2, seed=1)]
        data_owner.put_shard(dataset_id, shard_of(data_owner.folder, samples))
        dataset = self.seal(data_owner, dataset_id)
        assert dataset["state"] == "sealed"
        assert dataset["digest"].startswith("sha256:")
        assert dataset["sealed_at"] is not None
        first, *_ = data_owner.get(f"/datasets/{dataset_id}/samples").json()["items"]
        assert first == {
            "key": "a",
            "shard": "train-00.tar",
            "sha256": samples[0].sha256,
            "width": 16,
            "height": 16,
            "label": 7,
            "caption": "a cat",
            "size": len(PNG),
        }

    def test_samples_come_in_pages(self, data_owner: User) -> None:
        dataset_id = data_owner.sealed(images("p", 7))
        keys, cursor = [], None
        while True:
            query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
            page = data_owner.get(f"/datasets/{dataset_id}/samples", params=query).json()
            keys += [each["key"] for each in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert keys == [f"p-{number:03d}" for number in range(7)]

    @pytest.mark.parametrize(
        ("image", "code", "said"),
        [
            (PNG[:100], "image-undecodable", "sample 'broken'"),
            (b"GIF89a" + bytes(50), "image-undecodable", "readable .png"),
        ],
    )
    def test_an_undecodable_image_makes_it_invalid(
        self, data_owner: User, dataset_id: str, image: bytes, code: str, said: str
    ) -> None:
        data_owner.put_shard(dataset_id, tar_of(("good.png", PNG), ("broken.png", image)))
        dataset = self.seal(data_owner, dataset_id)
        assert dataset["state"] == "invalid"
        assert dataset["digest"] is None
        assert dataset["problem"]["code"] == code
        assert dataset["problem"]["shard"] == "train-00.tar"
        assert said in dataset["problem"]["detail"]

    def test_a_decompression_bomb_makes_it_invalid(self, data_owner: User, dataset_id: str) -> None:
        data_owner.put_shard(dataset_id, tar_of(("bomb.png", bomb(40_000, 40_000))))
        dataset = self.seal(data_owner, dataset_id)
        assert dataset["state"] == "invalid"
        assert dataset["problem"]["code"] == "image-too-large"
        assert "16,777,216" in dataset["problem"]["detail"]

    def test_a_key_in_two_shards_makes_it_invalid_until_one_is_replaced(
        self, data_owner: User, dataset_id: str
    ) -> None:
        data_owner.put_shard(dataset_id, tar_of(("a.png", PNG)), name="one.tar")
        data_owner.put_shard(dataset_id, tar_of(("a.png", PNG)), name="two.tar")
        dataset = self.seal(data_owner, dataset_id)
        assert dataset["state"] == "invalid"
        assert dataset["problem"]["code"] == "duplicate-key"
        assert "'a'" in dataset["problem"]["detail"]
        data_owner.put_shard(dataset_id, tar_of(("b.png", PNG)), name="two.tar")
        assert data_owner.get(f"/datasets/{dataset_id}").json()["state"] == "open"
        assert self.seal(data_owner, dataset_id)["state"] == "sealed"

    def test_a_sealed_data_set_takes_no_shard(self, data_owner: User) -> None:
        dataset_id = data_owner.sealed(images("s", 2))
        before = data_owner.get(f"/datasets/{dataset_id}").json()
        answer = data_owner.put_shard(dataset_id, shard_of(data_owner.folder, images("t", 2)))
        problem = problem_of(answer, 409, "conflict")
        assert "is sealed" in problem["detail"]
        assert data_owner.get(f"/datasets/{dataset_id}").json() == before

    def test_a_large_body_for_a_sealed_data_set_is_answered_at_once(self, data_owner: User) -> None:
        dataset_id = data_owner.sealed(images("s", 2))
        answer = data_owner.put_shard(dataset_id, bytes(8 * 2**20))
        problem_of(answer, 409, "conflict")

    def test_sealing_again_changes_nothing(self, data_owner: User) -> None:
        dataset_id = data_owner.sealed(images("s", 2))
        before = data_owner.get(f"/datasets/{dataset_id}").json()
        assert self.seal(data_owner, dataset_id) == before

    def test_sealing_without_waiting_answers_202(self, data_owner: User) -> None:
        dataset_id = data_owner.dataset(images("s", 2))
        answer = data_owner.post(f"/datasets/{dataset_id}/seal")
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/datasets/{dataset_id}"
        assert answer.headers["retry-after"] == "1"


def test_sealing_an_empty_data_set_is_refused(
    data_owner: User, dataset_id: str, unchanged: Callable[[], None]
) -> None:
    problem = problem_of(data_owner.post(f"/datasets/{dataset_id}/seal"), 409, "conflict")
    assert "has no shard" in problem["detail"]
    unchanged()


def test_samples_of_an_open_data_set_are_refused(data_owner: User, dataset_id: str) -> None:
    answer = data_owner.get(f"/datasets/{dataset_id}/samples")
    problem_of(answer, 409, "dataset-not-sealed")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred kilobytes at most that unpacks to width × height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
