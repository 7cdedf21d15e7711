"""Sealing data sets and verifying uploads, as a worker does it."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tests.worker.lab import ENCODER, Lab, World, images

from expunge.formats.digests import sha256_file
from expunge.formats.shards import Sample, index_shard, make_sample
from expunge.formats.tensors import read_header, write_release
from expunge.registry import datasets
from expunge.registry.checkpoints import StoredWeights, add_upload
from expunge.registry.tables import Checkpoint, Dataset, Role
from expunge.unlearning import checkpoints
from expunge.unlearning.frameworks import build


def find(lab: Lab, dataset_id: str) -> Dataset:
    with lab.sessions() as session:
        return session.get_one(Dataset, dataset_id)


def test_sealing_fixes_digest_and_index(lab: Lab) -> None:
    owner = lab.party("owner", Role.DATA_OWNER)
    samples = images("a", 5, 0)
    dataset = find(lab, lab.sealed(owner, "photos", samples))
    assert (dataset.state, dataset.samples) == ("sealed", 5)
    index = list(datasets.read_index(lab.store, str(dataset.index_key)))
    assert [each["key"] for each in index] == [each.key for each in samples]
    expected = index_shard(lab.folder / "photos-0.tar", "photos-0.tar")
    assert index == [each.to_dict() for each in expected]
    assert dataset.digest == datasets.encode_index(expected)[1]


def big_png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("shards", "code", "named"),
    [
        ([[make_sample("x", "jpg", b"no image at all")]], "image-undecodable", "'x'"),
        ([[*images("a", 1, 0), make_sample("b", "png", images("", 1, 0)[0].image[:60])]],
         "image-undecodable", "'b'"),
        ([[make_sample("x", "jpg", images("", 1, 0)[0].image)]], "image-undecodable", "'x'"),
        ([[make_sample("bomb", "png", big_png(5000))]], "image-too-large", "25,000,000 pixels"),
        ([[make_sample("bomb", "png", big_png(20_000))]], "image-too-large", "'bomb'"),
        ([images("a", 2, 0), images("a", 1, 1)], "duplicate-key", "'a-000'"),
    ],
    ids=["garbage", "cut off", "wrong suffix", "large", "bomb", "double key over shards"],
)  # fmt: skip
def test_a_bad_sample_makes_the_data_set_invalid_and_is_named(
    lab: Lab, shards: Sequence[Sequence[Sample]], code: str, named: str
) -> None:
    owner = lab.party("owner", Role.DATA_OWNER)
    dataset_id = lab.dataset(owner, "photos", shards)
    lab.seal(owner, dataset_id)
    dataset = find(lab, dataset_id)
    assert dataset.state == "invalid"
    assert dataset.digest is None
    assert dataset.problem is not None
    assert dataset.problem["code"] == code
    assert named in dataset.problem["detail"]
    assert dataset.problem["shard"] == f"photos-{len(shards) - 1}.tar"


def test_an_invalid_data_set_is_mended_by_replacing_the_shard(lab: Lab) -> None:
    owner = lab.party("owner", Role.DATA_OWNER)
    dataset_id = lab.dataset(owner, "photos", [[make_sample("x", "jpg", b"no image")]])
    lab.seal(owner, dataset_id)
    with lab.sessions.begin() as session:
        datasets.add_shard(session, owner, dataset_id, lab.shard("photos-0.tar", images("a", 3, 0)))
    assert find(lab, dataset_id).state == "open"
    lab.seal(owner, dataset_id)
    dataset = find(lab, dataset_id)
    assert (dataset.state, dataset.samples, dataset.problem) == ("sealed", 3, None)


def upload(lab: Lab, world: World, path: Path) -> Checkpoint:
    release = path.with_suffix(".release")
    write_release(path, release)
    digests = sha256_file(path), sha256_file(release)
    weights = StoredWeights(
        digest=f"sha256:{digests[0]}",
        object_key=lab.store.put(path, digests[0]),
        bytes=path.stat().st_size,
        release_digest=f"sha256:{digests[1]}",
        release_key=lab.store.put(release, digests[1]),
    )
    with lab.sessions.begin() as session:
        checkpoint = add_upload(
            session, world.model_owner, world.model, world.training_data, weights
        )
        job_id = (
            session.connection()
            .exec_driver_sql("SELECT id FROM jobs WHERE checkpoint_id = %s", (checkpoint.id,))
            .scalar_one()
        )
    lab.runner.run(job_id)
    with lab.sessions() as session:
        return session.get_one(Checkpoint, checkpoint.id)


def test_an_uploaded_checkpoint_becomes_ready_and_head(lab: Lab, world: World) -> None:
    path = lab.folder / "encoder.safetensors"
    checkpoints.save(build(ENCODER, seed=0), path)
    checkpoint = upload(lab, world, path)
    assert checkpoint.state == "ready"
    assert lab.head(world.model) == checkpoint.id


@pytest.mark.parametrize("fault", ["missing", "misshapen", "not finite"])
def test_a_checkpoint_that_does_not_fit_its_header_is_invalid_and_says_why(
    lab: Lab, world: World, fault: str
) -> None:
    path = lab.folder / "encoder.safetensors"
    checkpoints.save(build(ENCODER, seed=0), path)
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.startswith("encoder."))
    match fault:
        case "missing":
            del tensors[name]
        case "misshapen":
            tensors[name] = np.zeros((3, 3), np.float32)
        case "not finite":
            tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, path, read_header(path).metadata)
    checkpoint = upload(lab, world, path)
    assert checkpoint.state == "invalid"
    assert checkpoint.problem is not None
    assert fault in checkpoint.problem["detail"]
    assert name in checkpoint.problem["detail"]
    assert lab.head(world.model) is None
