"""Retrain, kept: weights trained once on a retain set are read again by every later comparison.

Never serves weights whose identity differs in anything that decides them.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from expunge.unlearning.candidates import REFERENCE_METHOD
from expunge.unlearning.catalog import RunParams
from expunge.unlearning.checkpoints import CheckpointMismatch, load, save
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.hardware import precision_for, resolve_device
from expunge.unlearning.training import OnProgress, unlearn

KEPT_CHECKPOINTS = 20
SUFFIX = ".safetensors"
_SECONDS, _IDENTITY = "seconds", "identity"


@dataclass(frozen=True)
class Retrained:
    """Weights that never saw an unlearn sample, and what they cost when they were made."""

    learner: Learner
    seconds: float
    reused: bool


@dataclass(frozen=True)
class OracleStore:
    """A folder of retrained checkpoints; beyond `keep`, those longest unused are removed.

    Several processes may share it: a file appears whole, by a rename.
    """

    folder: Path
    keep: int = KEPT_CHECKPOINTS

    def find(self, identity: str) -> Retrained | None:
        """The weights of this identity; None if there are none, or none that can be read."""
        path = self._path(identity)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            learner, seconds = load(path), float(metadata[_SECONDS])
            path.touch()
        except (OSError, SafetensorError, CheckpointMismatch, KeyError, ValueError):
            return None
        return Retrained(learner, seconds, reused=True) if metadata[_IDENTITY] == identity else None

    def keep_weights(self, identity: str, learner: Learner, seconds: float) -> None:
        """Write the weights of this identity, then remove what is beyond `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        os.close(handle)
        try:
            save(learner, Path(name), extra={_SECONDS: repr(seconds), _IDENTITY: identity})
            Path(name).replace(self._path(identity))
        finally:
            Path(name).unlink(missing_ok=True)
        newest = sorted(self.folder.glob(f"*{SUFFIX}"), key=_last_used, reverse=True)
        for path in newest[self.keep :]:
            path.unlink(missing_ok=True)

    def _path(self, identity: str) -> Path:
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()}{SUFFIX}"


def retrained(
    store: OracleStore | None,
    learner: Learner,
    retain: ImageSet,
    forget: ImageSet,
    params: RunParams,
    *,
    seed: int,
    device: str,
    on_progress: OnProgress | None = None,
    recompute: bool = False,
) -> Retrained:
    """Retrain as `training.unlearn` does it, or read what `store` has of it.

    Raises TrainingError.
    """
    identity = identity_of(learner, retain, params, seed=seed, device=device)
    found = store.find(identity) if store else None
    if found:
        return found
    result = unlearn(
        learner,
        retain,
        forget,
        REFERENCE_METHOD,
        params,
        seed=seed,
        device=device,
        on_progress=on_progress,
        recompute=recompute,
    )
    if store:
        store.keep_weights(identity, result.learner, result.seconds)
    return Retrained(result.learner, result.seconds, reused=False)


def identity_of(
    learner: Learner, retain: ImageSet, params: RunParams, *, seed: int, device: str
) -> str:
    """All that decides the weights of Retrain, as JSON.

    The samples in their order with labels and captions, the encoder's specification, the
    parameters, the seed, the device and its number format, and the versions of torch and expunge.
    """
    target = resolve_device(device)
    hardware = torch.cuda.get_device_name(target) if target.type == "cuda" else target.type
    facts = {
        "samples": _digest(retain),
        "spec": learner.spec.model_dump(mode="json"),
        "params": params.model_dump(mode="json"),
        "seed": seed,
        "hardware": hardware,
        "precision": precision_for(target),
        "torch": torch.__version__,
        "expunge": version("expunge"),
    }
    return json.dumps(facts, sort_keys=True)


def _digest(images: ImageSet) -> str:
    tensors = [images.ids, images.labels]
    if images.captions is not None:
        captions = images.captions
        tensors += [captions.tokens, captions.first, captions.count]
    digest = hashlib.sha256(f"{images.image_size}".encode())
    for tensor in tensors:
        content = b"" if tensor is None else tensor.cpu().contiguous().numpy().tobytes()
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
