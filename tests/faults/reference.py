"""What a job gives when nothing disturbs it: the same training by the library alone, in this process."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from tests.faults.rig import Rig, Row
from tests.worker.lab import ENCODER, images

from expunge.formats.shards import write_shard
from expunge.registry.objects import fetch
from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import EncoderSpec, PretrainParams
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.training import pretrain, unlearn


def quick_weights(folder: Path) -> Path:
    """A checkpoint that is quickly made; what matters here is what happens to it."""
    shard, path = folder / "any.tar", folder / "weights.safetensors"
    write_shard(shard, images("any", 32, 0))
    params = PretrainParams(epochs=1, batch_size=16)
    made = pretrain(ENCODER, load_for(ENCODER, [shard]), params, seed=0, device="cpu")
    checkpoints.save(made.learner, path)
    return path


def digest_undisturbed(rig: Rig, job_id: str, folder: Path) -> str:
    """SHA-256 of the checkpoint that a training job has to give, from its row and what it started from."""
    threads = torch.get_num_threads()
    # Sums over several threads round differently; the rig's training processes have one.
    torch.set_num_threads(1)
    try:
        learner = _trained(rig, rig.job(job_id), folder)
    finally:
        torch.set_num_threads(threads)
    path = folder / "result.safetensors"
    checkpoints.save(learner, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _trained(rig: Rig, job: Row, folder: Path) -> Learner:
    (model,) = rig.rows("SELECT * FROM models WHERE id = :id", id=job["model_id"])
    spec = EncoderSpec.model_validate(model["encoder"])
    params = job["params"]
    if job["kind"] == "pretrain":
        images = _images(rig, spec, params["dataset_ids"], folder)
        return pretrain(spec, images, params["params"], seed=params["seed"], device="cpu").learner
    base = folder / "base.safetensors"
    fetch(rig.store, _base(rig, job)["object_key"], base)
    forget, retain = _split(rig, job)
    return unlearn(
        checkpoints.load(base),
        _images(rig, spec, retain, folder),
        _images(rig, spec, forget, folder),
        params["method"],
        params["params"],
        seed=params["seed"],
        device="cpu",
    ).learner


def digest_recorded(rig: Rig, job_id: str) -> str:
    """SHA-256 of the checkpoint that the job gave."""
    (result,) = rig.rows("SELECT digest FROM checkpoints WHERE job_id = :id", id=job_id)
    return str(result["digest"]).removeprefix("sha256:")


def _base(rig: Rig, job: Row) -> Row:
    (base,) = rig.rows("SELECT * FROM checkpoints WHERE id = :id", id=job["base_checkpoint_id"])
    return base


def _split(rig: Rig, job: Row) -> tuple[set[str], set[str]]:
    """Data sets that the job forgot, and those that it kept."""
    forgotten = {
        checkpoint_id: {
            row["dataset_id"]
            for row in rig.rows(
                "SELECT dataset_id FROM checkpoint_datasets WHERE checkpoint_id = :id AND forgotten",
                id=checkpoint_id,
            )
        }
        for checkpoint_id in (job["base_checkpoint_id"], job["result_checkpoint_id"])
    }
    after = forgotten[job["result_checkpoint_id"]]
    trained = rig.rows(
        "SELECT dataset_id FROM checkpoint_datasets WHERE checkpoint_id = :id",
        id=job["base_checkpoint_id"],
    )
    return (
        after - forgotten[job["base_checkpoint_id"]],
        {row["dataset_id"] for row in trained} - after,
    )


def _images(rig: Rig, spec: EncoderSpec, dataset_ids: Iterable[str], folder: Path) -> ImageSet:
    """In the order in which a worker reads them: by data set, then by shard."""
    paths = []
    for shard in rig.rows(
        "SELECT * FROM shards WHERE dataset_id = ANY(:ids) ORDER BY dataset_id, name",
        ids=list(dataset_ids),
    ):
        path = folder / f"{shard['dataset_id']}-{shard['name']}"
        fetch(rig.store, shard["object_key"], path)
        paths.append(path)
    return load_for(spec, paths)
