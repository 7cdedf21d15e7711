"""Snapshots of a run: all that its next step depends on, in one safetensors file.

A run resumed from one goes on as if it had never stopped, bit for bit on the same hardware. They
hold optimiser state and keys of unlearn samples, so they never leave the service. Never unpickles.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.unlearning.errors import SnapshotMismatch
from expunge.unlearning.frameworks import Learner

FORMAT = "expunge-snapshot/2"
LEARNER, OPTIMISER, BEST, RANDOM = "learner.", "optimiser.", "best.", "random."
SUM = "sum."
DIGEST = "sha256"
"""Key in the file's metadata: of everything else in the file."""


@dataclass(frozen=True)
class Snapshots:
    """Where a run keeps its latest snapshot and how often it writes one.

    A run that finds a snapshot of its own at `path` goes on from it; the file is removed when the
    run has ended well.
    """

    path: Path
    every_seconds: float = 60.0
    """At least this long between two; one more is written whenever the run is stopped."""
    max_share: float = 0.02
    """Of the time, in (0, 1], for writing them: where one takes long, the next one waits."""
    should_stop: Callable[[], bool] | None = None
    """Asked after each step; once true, the run writes a snapshot and raises RunStopped."""
    on_written: Callable[[int], None] | None = None
    """Told the steps done, each time a snapshot has taken its place at `path`."""
    on_resumed: Callable[[int], None] | None = None
    """Told the steps done, if the run goes on from a snapshot."""


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
        self._pause = snapshots.every_seconds

    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.perf_counter() - self._written >= self._pause

    def should_stop(self) -> bool:
        """Whether the run is to end after this step."""
        asked = self._snapshots.should_stop
        return asked is not None and asked()

    def write(
        self,
        state: RunState,
        learner: Learner,
        optimiser: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        """Replace the file at once: a crash leaves the old snapshot or the new one."""
        if device.type == "cuda":
            # Steps that are still under way are no cost of the snapshot.
            torch.cuda.synchronize(device)
        started = time.perf_counter()
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
        self._replace(tensors, {"identity": self._identity, "state": json.dumps(plain)})
        self._written = time.perf_counter()
        seconds = self._written - started
        self._pause = max(self._snapshots.every_seconds, seconds / self._snapshots.max_share)
        if self._snapshots.on_written is not None:
            self._snapshots.on_written(state.steps_done)

    def _replace(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        # Contiguous copies: the format refuses views and tensors that share memory.
        copies = {n: value.detach().cpu().contiguous().clone() for n, value in tensors.items()}
        described = {"format": FORMAT, **metadata}
        save_file(copies, self._partial, described | {DIGEST: _digest_of_file(copies, described)})
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._snapshots.path)

    def restore(
        self, learner: Learner, optimiser: torch.optim.Optimizer, device: torch.device
    ) -> RunState | None:
        """Load weights, optimiser and random state; None where there is no snapshot.

        Raises SnapshotMismatch if the file is damaged or of another run; what was given may then
        hold a part of it.
        """
        if not self._snapshots.path.exists():
            return None
        tensors, plain = self._read()
        try:
            learner.load_state_dict(_under(tensors, LEARNER))
            _restore_optimiser(optimiser, _under(tensors, OPTIMISER))
            torch.set_rng_state(tensors[RANDOM + "cpu"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(tensors[RANDOM + "cuda"], device)
            state = RunState(
                **plain,
                sums={name: value.to(device) for name, value in _under(tensors, SUM).items()},
                stream=_under(tensors, RANDOM + "stream."),
                best=_under(tensors, BEST) or None,
            )
        except torch.OutOfMemoryError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            # Whole, and of this run: so it was written by a version that kept other things.
            raise SnapshotMismatch(f"it was written by another version: {error}") from error
        if self._snapshots.on_resumed is not None:
            self._snapshots.on_resumed(state.steps_done)
        return state

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            with safe_open(self._snapshots.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise SnapshotMismatch(f"it is damaged: {error}") from error
        if metadata.get("format") != FORMAT:
            raise SnapshotMismatch(f"it is no snapshot of this version, {FORMAT}")
        if metadata.pop(DIGEST, None) != _digest_of_file(tensors, metadata):
            raise SnapshotMismatch("it is damaged: its content does not have its SHA-256")
        if metadata["identity"] != self._identity:
            raise SnapshotMismatch("it is of another run: other data, parameters, seed or hardware")
        return tensors, json.loads(metadata["state"])

    def remove(self) -> None:
        """The run has ended: nothing of it is left behind, nor of a write that a crash cut short."""
        self._snapshots.path.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)


def digest_of(tensors: Mapping[str, Tensor | None]) -> str:
    """SHA-256 of names, types, shapes and values, for an identity."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        described = None if value is None else [str(value.dtype), list(value.shape)]
        # JSON tells where a name ends and values begin.
        digest.update(json.dumps([name, described]).encode())
        if value is not None:
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    whole = {"metadata": dict(metadata), "tensors": digest_of(tensors)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


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
