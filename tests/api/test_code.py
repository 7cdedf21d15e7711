"""Files that would run code where they are unpickled: refused by api and worker, and nothing runs."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.api.conftest import Past, User, problem_of

from expunge.formats.digests import content_digest, sha256_file
from expunge.worker.running import Runner


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a bomb leaves behind."""
    return tmp_path / "mark"


@pytest.fixture
def bomb(mark: Path) -> bytes:
    data = pickle.dumps({"state_dict": Bomb(mark)})
    pickle.loads(data)  # noqa: S301 - that it would go off
    assert mark.is_dir()
    mark.rmdir()
    return data


def zipped(data: bytes) -> bytes:
    """As torch.save writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def tar_of(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("wrap", [bytes, zipped])
def test_a_pickled_checkpoint_is_refused(
    model_owner: User,
    past: Past,
    bomb: bytes,
    mark: Path,
    wrap: Callable[[bytes], bytes],
) -> None:
    path = mark.with_name("model.pth")
    path.write_bytes(wrap(bomb))
    answer = model_owner.http.post(
        f"/models/{model_owner.model()}/checkpoints",
        content=path.read_bytes(),
        params={"dataset_ids": past.sealed(model_owner)},
        headers={"Content-Digest": content_digest(sha256_file(path))},
    )
    problem_of(answer, 422, "invalid-checkpoint")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.pyd", "a.pth", "a.npy", "a.py"])
def test_a_member_that_readers_of_shards_unpickle_is_refused(
    data_owner: User, bomb: bytes, mark: Path, name: str
) -> None:
    answer = data_owner.put_shard(data_owner.open_dataset(), tar_of(name, bomb))
    assert problem_of(answer, 422, "invalid-shard")["code"] == "unknown-suffix"
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_under_an_images_name_it_is_no_image(
    data_owner: User, worker: Runner, bomb: bytes, mark: Path, name: str
) -> None:
    dataset = data_owner.open_dataset()
    answer = data_owner.put_shard(dataset, tar_of(name, bomb))
    if answer.status_code == 201:
        sealed = data_owner.post(f"/datasets/{dataset}/seal", headers={"Prefer": "wait=30"}).json()
        assert (sealed["state"], sealed["problem"]["code"]) == ("invalid", "image-undecodable")
    else:
        assert problem_of(answer, 422, "invalid-shard")["code"] == "image-undecodable"
    assert not mark.exists()
