"""What a supervisor asks of a training process, as plain data that travels in a JSON file."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
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
