"""A third party repeats a run from its manifest, the data and the base, and finds the same weights."""

from pathlib import Path

import pytest
from tests.worker.lab import Lab, World

from expunge.evidence.manifest import Data, Manifest
from expunge.formats.digests import sha256_file
from expunge.registry import manifests
from expunge.registry.errors import Conflict
from expunge.registry.objects import fetch
from expunge.registry.tables import Checkpoint, Dataset
from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.training import pretrain, unlearn


class ThirdParty:
    """Has files only: data sets and checkpoints that were handed to it, by their digests."""

    def __init__(self, lab: Lab, world: World, folder: Path) -> None:
        self.folder = folder
        with lab.sessions() as session:
            self.shards = {}
            for dataset_id in world.training_data:
                dataset = session.get_one(Dataset, dataset_id)
                paths = [folder / f"{shard.dataset_id}-{shard.name}" for shard in dataset.shards]
                for shard, path in zip(dataset.shards, paths, strict=True):
                    fetch(lab.store, shard.object_key, path)
                self.shards[dataset.digest] = paths
            base = session.get_one(Checkpoint, lab.head(world.model))
            fetch(lab.store, base.object_key, folder / base.digest)

    def images(self, data: list[Data], spec: EncoderSpec) -> ImageSet:
        return load_for(spec, [path for each in data for path in self.shards[each.digest]])

    def replayed(self, manifest: Manifest) -> str:
        """The digest of what the run gives here."""
        spec, seed = EncoderSpec.model_validate(manifest.encoder), int(manifest.seed)
        retain = self.images(manifest.retain, spec)
        device = manifest.environment.device
        if manifest.method is None or manifest.base is None:
            result = pretrain(spec, retain, manifest.params, seed=seed, device=device)
        else:
            result = unlearn(
                checkpoints.load(self.folder / manifest.base.digest),
                retain,
                self.images(manifest.unlearn, spec),
                manifest.method,
                manifest.params,
                seed=seed,
                device=device,
            )
        path = self.folder / "replayed.safetensors"
        checkpoints.save(result.learner, path)
        return f"sha256:{sha256_file(path)}"


def test_runs_are_repeated_from_their_manifests(lab: Lab, trained: World, tmp_path: Path) -> None:
    third_party = ThirdParty(lab, trained, tmp_path)
    with lab.sessions() as session:
        head = session.get_one(Checkpoint, lab.head(trained.model))
    request = lab.request(trained.first_owner, trained.model, [trained.first])
    with pytest.raises(Conflict, match="has left no manifest"):
        manifests.of(lab.job_of(request))
    lab.runner.run(lab.job_of(request).id)
    for job in (lab.job(str(head.job_id)), lab.job_of(request)):
        manifest = manifests.of(job)
        assert manifest.kind == job.kind
        assert third_party.replayed(manifest) == manifest.result.digest
        with lab.sessions() as session:
            result = session.get_one(Checkpoint, job.result_checkpoint_id)
        assert manifest.result.digest == result.digest
    assert [each.dataset_id for each in manifest.unlearn] == [trained.first]
    assert [each.dataset_id for each in manifest.retain] == sorted([trained.own, trained.second])
    assert manifest.base is not None
    assert manifest.base.digest == head.digest
    assert manifest.environment.threads == 1
