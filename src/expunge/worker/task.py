"""What a supervisor asks of a training process, as plain data that travels in a JSON file."""

import errno
import json
from dataclasses import asdict, dataclass
from typing import Any

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk; safetensors names them in the words of its own error."""
STOPPED_STATUS = 75
"""How a training process exits that was asked to stop."""


@dataclass(frozen=True)
class TrainingTask:
    """One training run on files; paths are absolute."""

    encoder: dict[str, Any]
    """The catalog's EncoderSpec."""
    method: str | None
    """Id of the unlearning method; None for pre-training."""
    params: dict[str, Any]
    seed: int
    device: str
    retain_shards: list[str]
    """What to train on, or to keep."""
    unlearn_shards: list[str]
    base: str | None
    """Checkpoint to start from; None for pre-training."""
    result: str
    """Where the new checkpoint is written."""
    snapshot: str
    """Where the run keeps its latest snapshot, and goes on from one that is there."""
    snapshot_seconds: float
    """Between two snapshots, at least."""
    recompute: bool = False
    """An earlier attempt ran out of memory: make activations anew instead of keeping them."""

    @property
    def step(self) -> str:
        """What has to fit into memory."""
        batch, size = self.params["batch_size"], self.encoder["image_size"]
        return f"a step of {batch} samples of {size} × {size} pixels"

    def fits(self, progress: dict[str, Any] | None) -> bool:
        """Whether that fits for sure: a first report comes after a step. Then others took the memory."""
        return progress is not None


@dataclass(frozen=True)
class ComparisonTask:
    """Several unlearning methods on one checkpoint; paths are absolute, shards by data set."""

    settings: dict[str, Any]
    """As the registry keeps them: candidates, search, Retrain, seeds, protocol."""
    device: str
    retain_shards: dict[str, list[str]]
    unlearn_shards: dict[str, list[str]]
    test_shards: dict[str, list[str]]
    base: str
    oracles: str
    """Folder of Retrain's checkpoints, kept between comparisons."""
    results: str
    """Folder that the tables and the chart are written to."""
    recompute: bool = False
    """As of a training task."""

    @property
    def step(self) -> str:
        """What has to fit into memory."""
        return "one of its runs"

    def fits(self, _: dict[str, Any] | None) -> bool:
        """Never for sure: the next run may need more than those before it."""
        return False


Task = TrainingTask | ComparisonTask
KINDS: dict[str, type[TrainingTask] | type[ComparisonTask]] = {
    "train": TrainingTask,
    "compare": ComparisonTask,
}


def to_json(task: Task) -> str:
    """The task as the training process reads it."""
    kind = next(name for name, each in KINDS.items() if isinstance(task, each))
    return json.dumps({"kind": kind, **asdict(task)})


def from_json(text: str) -> Task:
    """The task that `to_json` wrote."""
    members = json.loads(text)
    return KINDS[members.pop("kind")](**members)
