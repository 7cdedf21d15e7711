"""Copies of data sets and checkpoints in a local folder, digests checked, for code that reads files."""

from collections.abc import Iterable
from pathlib import Path

from expunge.registry.objects import ObjectStore, fetch
from expunge.registry.tables import Checkpoint, Dataset, Shard


def stage_shard(store: ObjectStore, shard: Shard, folder: Path) -> Path:
    """The shard's bytes as a file."""
    path = folder / f"{shard.dataset_id}-{shard.name}"
    fetch(store, shard.object_key, path)
    return path


def stage_datasets(store: ObjectStore, datasets: Iterable[Dataset], folder: Path) -> list[Path]:
    """All shards of data sets as files, in order of data set and shard name."""
    return [
        stage_shard(store, shard, folder)
        for dataset in sorted(datasets, key=lambda each: each.id)
        for shard in dataset.shards
    ]


def stage_checkpoint(store: ObjectStore, checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint's file."""
    path = folder / f"{checkpoint.id}.safetensors"
    fetch(store, checkpoint.object_key, path)
    return path
