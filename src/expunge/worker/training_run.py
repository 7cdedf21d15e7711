"""What a training process does for a pre-training or unlearning job: train, save, measure what was saved."""

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from expunge.unlearning import checkpoints
from expunge.unlearning.audit import audit
from expunge.unlearning.audit_report import Group
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.training import TrainingResult, pretrain, unlearn
from expunge.worker.supervisor_pipe import Supervisor
from expunge.worker.task import TrainingTask

EVALUATION_IMAGES = 256
"""Retained and unlearn samples that the result is measured on, at most, each."""
EVALUATION_VIEWS = 4


def run(task: TrainingTask, supervisor: Supervisor) -> None:
    """Train as the task says, save, measure what was saved, report.

    Raises:
        TrainingError, CheckpointMismatch: with a reason in words.
    """
    retain = _load(task.retain_shards, task)
    if task.method is None:
        result = pretrain(
            EncoderSpec.model_validate(task.encoder),
            retain,
            task.params,
            seed=task.seed,
            device=task.device,
            on_progress=supervisor.progress,
        )
        checkpoints.save(result.learner, Path(task.result))
        supervisor.tell("done", result=_metrics(result))
        return
    forget = _load(task.unlearn_shards, task)
    before = checkpoints.load(Path(str(task.base)))
    result = unlearn(
        before,
        retain,
        forget,
        task.method,
        task.params,
        seed=task.seed,
        device=task.device,
        on_progress=supervisor.progress,
    )
    checkpoints.save(result.learner, Path(task.result))
    supervisor.tell("evaluating")
    after = checkpoints.load(Path(task.result))
    report = audit(
        before,
        after,
        _draw(forget, task.seed),
        _draw(retain, task.seed),
        views=EVALUATION_VIEWS,
        seed=task.seed,
        device=task.device,
    )
    evaluation = {
        level: {"unlearn": _group(found.own), "retain": _group(found.control)}
        for level, found in report.levels.items()
    }
    supervisor.tell("done", result=_metrics(result) | {"evaluation": evaluation})


def _load(shards: list[str], task: TrainingTask) -> ImageSet:
    spec = EncoderSpec.model_validate(task.encoder)
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
