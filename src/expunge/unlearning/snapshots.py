"""Snapshots of a run: all that its next step depends on, in one safetensors file.

A run resumed from one goes on as if it had never stopped, bit for bit on the same hardware. They
hold optimiser state and keys of unlearn samples, so they never leave the service. Never unpickles.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.unlearning.errors import SnapshotMismatch
from expunge.unlearning.frameworks import Learner

FORMAT = "expunge-snapshot/1"
LEARNER, OPTIMISER, BEST, RANDOM = "learner.", "optimiser.", "best.", "random."
SUM = "sum."


@dataclass(frozen=True)
class Snapshots:
    """Where a run keeps its latest snapshot and how often it writes one.

    A run that finds a snapshot of its own at `path` goes on from it; the file is removed when the
    run has ended well.
    """

    path: Path
    every_seconds: float = 60.0
    """At least this long between two; one more is written whenever `on_progress` stops the run."""


@dataclass
class RunState:
    """Everything beside the weights that a run's next step depends on."""

    epoch: int = 0
    """0-based epoch the next step belongs to."""
    steps_in_epoch: int = 0
    """Steps of that epoch already taken."""
    steps_done: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Summed losses of the epoch so far, scalars."""
    stream: dict[str, Tensor] = field(default_factory=dict)
    """Of `BatchStream`, as it was when the epoch began."""
    best: dict[str, Tensor] | None = None
    """Weights after the epoch with the lowest score."""


class SnapshotFile:
    """Reads and writes the snapshots of one run, told from those of any other by `identity`."""

    def __init__(self, snapshots: Snapshots, identity: Mapping[str, Any]) -> None:
        self._snapshots = snapshots
        text = json.dumps(identity, sort_keys=True)
        self._partial = snapshots.path.with_name(snapshots.path.name + ".partial")
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self._written = time.perf_counter()

    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.perf_counter() - self._written >= self._snapshots.every_seconds

    def write(
        self,
        state: RunState,
        learner: Learner,
        optimiser: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        """Replace the file at once: a crash leaves the old snapshot or the new one."""
        tensors = {LEARNER + name: value for name, value in learner.state_dict().items()}
        for index, kept in optimiser.state_dict()["state"].items():
            for name, value in kept.items():
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMISER}{index}.{name}"] = value
        tensors |= {SUM + name: value for name, value in state.sums.items()}
        tensors |= {RANDOM + "stream." + name: value for name, value in state.stream.items()}
        tensors[RANDOM + "cpu"] = torch.get_rng_state()
        if device.type == "cuda":
            tensors[RANDOM + "cuda"] = torch.cuda.get_rng_state(device)
        if state.best is not None:
            tensors |= {BEST + name: value for name, value in state.best.items()}
        plain = {
            "epoch": state.epoch,
            "steps_in_epoch": state.steps_in_epoch,
            "steps_done": state.steps_done,
            "seconds": state.seconds,
            "history": state.history,
            "scores": state.scores,
        }
        path, partial = self._snapshots.path, self._partial
        save_file(
            # Contiguous copies: the format refuses views and tensors that share memory.
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            partial,
            {"format": FORMAT, "identity": self._identity, "state": json.dumps(plain)},
        )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        self._written = time.perf_counter()

    def restore(
        self, learner: Learner, optimiser: torch.optim.Optimizer, device: torch.device
    ) -> RunState | None:
        """Load weights, optimiser and random state; None where there is no snapshot.

        Raises SnapshotMismatch if the file is damaged or of another run.
        """
        if not self._snapshots.path.exists():
            return None
        try:
            with safe_open(self._snapshots.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise SnapshotMismatch(f"it cannot be read: {error}") from error
        if metadata.get("format") != FORMAT or metadata.get("identity") != self._identity:
            raise SnapshotMismatch("it is of another run: other data, parameters, seed or hardware")
        learner.load_state_dict(_under(tensors, LEARNER))
        _restore_optimiser(optimiser, _under(tensors, OPTIMISER))
        torch.set_rng_state(tensors[RANDOM + "cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors[RANDOM + "cuda"], device)
        best = _under(tensors, BEST)
        return RunState(
            **json.loads(metadata["state"]),
            sums={name: value.to(device) for name, value in _under(tensors, SUM).items()},
            stream=_under(tensors, RANDOM + "stream."),
            best=best or None,
        )

    def remove(self) -> None:
        """The run has ended: nothing of it is left behind, nor of a write that a crash cut short."""
        self._snapshots.path.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)


def digest_of(tensors: Mapping[str, Tensor | None]) -> str:
    """SHA-256 of names and values, for an identity."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        if value is not None:
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _restore_optimiser(optimiser: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    whole = optimiser.state_dict()
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in kept.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = _laid_out(value, trained[int(index)])
    optimiser.load_state_dict({**whole, "state": state})


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    # Fused optimisers walk through memory: another layout would pair weights with wrong momenta.
    if value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, device="cpu").copy_(value)
