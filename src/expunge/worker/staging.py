"""Copies of data sets and checkpoints in a local folder, digests checked, for code that reads files."""

from collections.abc import Iterable
from pathlib import Path

from expunge.registry.objects import ObjectStore, fetch
from expunge.registry.tables import Checkpoint, Dataset, Shard
from expunge.worker.leases import Held


class Stage:
    """A folder that objects are copied to, through short outages of the store.

    Everything raises ObjectMissing, ObjectDamaged, and what `Held.patiently` raises.
    """

    def __init__(self, store: ObjectStore, held: Held, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._held = held

    def shard(self, shard: Shard) -> Path:
        """The shard's bytes as a file."""
        return self._fetch(shard.object_key, f"{shard.dataset_id}-{shard.name}")

    def datasets(self, datasets: Iterable[Dataset]) -> list[Path]:
        """All shards of data sets as files, in order of data set and shard name."""
        return [
            self.shard(shard)
            for dataset in sorted(datasets, key=lambda each: each.id)
            for shard in dataset.shards
        ]

    def checkpoint(self, checkpoint: Checkpoint) -> Path:
        """The checkpoint's file."""
        return self._fetch(checkpoint.object_key, f"{checkpoint.id}.safetensors")

    def _fetch(self, key: str, name: str) -> Path:
        path, held = self.folder / name, self._held
        held.patiently(lambda: fetch(self._store, key, path, check=held.check))
        return path
