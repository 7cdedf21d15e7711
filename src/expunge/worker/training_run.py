"""What a training process does for a pre-training or unlearning job: train, save, measure what was saved."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expunge.evidence.audit.report import Group
from expunge.evidence.manifest import environment
from expunge.unlearning import checkpoints
from expunge.unlearning.audit import audit
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.errors import EmptySetError, SnapshotMismatch
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.metrics.contrastive_accuracy import contrastive_accuracy
from expunge.unlearning.progress import TrainingResult
from expunge.unlearning.snapshots import Snapshots
from expunge.unlearning.training import pretrain, unlearn
from expunge.worker.stop_signal import StopSignal
from expunge.worker.supervisor_pipe import Supervisor
from expunge.worker.task import TrainingTask

EVALUATION_IMAGES = 256
"""Retained and unlearn samples that the result is measured on, at most, each."""
EVALUATION_VIEWS = 4

Train = Callable[..., TrainingResult]
"""What `pretrain` and `unlearn` are once they know their data."""


def run(task: TrainingTask, supervisor: Supervisor, stop: StopSignal) -> None:
    """Train as the task says, from its snapshot if there is one, save, measure what was saved, report.

    Raises:
        TrainingError, CheckpointMismatch: with a reason in words.
        RunStopped: `stop` said so; the snapshot has all that was done.
    """
    spec = EncoderSpec.model_validate(task.encoder)
    retain = _load("training" if task.method is None else "retain", task.retain_shards, spec)
    if task.method is None:
        result = _train(partial(pretrain, spec, retain, task.params), task, supervisor, stop)
        checkpoints.save(result.learner, Path(task.result))
        found = _measured(None, retain, None, task)
    else:
        forget = _load("unlearn", task.unlearn_shards, spec)
        before = checkpoints.load(Path(str(task.base)))
        begin = partial(unlearn, before, retain, forget, task.method, task.params)
        result = _train(begin, task, supervisor, stop)
        checkpoints.save(result.learner, Path(task.result))
        supervisor.tell("evaluating")
        found = _measured(before, retain, forget, task)
    memory = {"memory": "recompute"} if task.recompute else {}
    supervisor.tell("done", result=_metrics(result) | memory | found)


def _train(
    train: Train, task: TrainingTask, supervisor: Supervisor, stop: StopSignal
) -> TrainingResult:
    """Train from the snapshot that is there; from the beginning if it cannot be gone on from."""
    snapshots = Snapshots(
        Path(task.snapshot),
        every_seconds=task.snapshot_seconds,
        should_stop=stop.should_stop,
        on_written=lambda step: supervisor.tell("snapshot", step=step),
        on_resumed=lambda step: supervisor.tell("resumed", step=step),
    )
    start = partial(
        train,
        seed=task.seed,
        device=task.device,
        on_progress=supervisor.progress,
        snapshots=snapshots,
        recompute=task.recompute,
    )
    try:
        result = start()
    except SnapshotMismatch as error:
        supervisor.tell("snapshot-refused", reason=str(error))
        snapshots.path.unlink()
        result = start()
    stop.steps_are_over()
    return result


def _measured(
    before: Learner | None, retain: ImageSet, forget: ImageSet | None, task: TrainingTask
) -> dict[str, Any]:
    """Of the checkpoint that was saved, on draws of both sets."""
    after, kept = checkpoints.load(Path(task.result)), _draw(retain, task.seed)
    measured: dict[str, Any] = {
        "samples": {"retain": len(retain), "unlearn": 0 if forget is None else len(forget)},
        "utility": _utility(before, after, kept, task),
    }
    if before is not None and forget is not None:
        report = audit(
            before,
            after,
            _draw(forget, task.seed),
            control=kept,
            views=EVALUATION_VIEWS,
            seed=task.seed,
            device=task.device,
        )
        measured["evaluation"] = {
            level: {"unlearn": _group(found.own), "retain": _group(found.control)}
            for level, found in report.levels.items()
        }
    return measured


def _utility(
    before: Learner | None, after: Learner, kept: ImageSet, task: TrainingTask
) -> dict[str, Any]:
    """Contrastive accuracy on retained images, to be held against chance."""

    def accuracy(learner: Learner) -> float:
        return contrastive_accuracy(learner, kept, resolve_device(task.device), seed=task.seed)

    return {
        "before": None if before is None else accuracy(before),
        "after": accuracy(after),
        "n": len(kept),
        "chance": 1 / len(kept),
    }


def _load(name: str, shards: list[str], spec: EncoderSpec) -> ImageSet:
    if not shards:
        raise EmptySetError(name)
    return load_for(spec, [Path(shard) for shard in shards])


def _draw(images: ImageSet, seed: int) -> ImageSet:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[:EVALUATION_IMAGES])


def _group(group: Group | None) -> dict[str, Any] | None:
    return None if group is None else asdict(group)


def _metrics(result: TrainingResult) -> dict[str, Any]:
    return {
        "seconds": result.seconds,
        "steps": result.steps,
        "images_per_second": result.images_per_second,
        "device": result.device,
        "precision": result.precision,
        "hardware": _hardware(result.device),
        "history": result.history,
        "environment": environment(
            device=result.device,
            precision=result.precision,
            hardware=_hardware(result.device),
            threads=torch.get_num_threads(),
            cuda=torch.version.cuda,
        ).model_dump(),
    }


def _hardware(device: str) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{len(os.sched_getaffinity(0))} × {_processor()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
