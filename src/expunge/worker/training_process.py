"""The training process: reads a task file, trains, writes the result file, tells its supervisor how it goes.

Started as `python -m expunge.worker.training_process TASK_FILE PIPE_FD`. Knows no database, no object store
and no key; what it may touch lies in one folder.
"""

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from expunge.unlearning import checkpoints
from expunge.unlearning.audit import audit
from expunge.unlearning.audit_report import Group
from expunge.unlearning.catalog import EncoderSpec, PretrainParams, parse_params
from expunge.unlearning.data.image_set import ImageSet, load_shards
from expunge.unlearning.errors import TrainingError
from expunge.unlearning.training import Progress, TrainingResult, pretrain, unlearn
from expunge.worker.task import Task

EVALUATION_IMAGES = 256
"""Retained and unlearn samples that the result is measured on, at most, each."""
EVALUATION_VIEWS = 4


class Supervisor:
    """The pipe to the supervising worker: one JSON message a line.

    Writing fails when the supervisor is gone, which ends this process: nobody is left to record a result.
    """

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    def tell(self, kind: str, **content: Any) -> None:
        """Send one message."""
        self._pipe.write(json.dumps({"kind": kind, **content}) + "\n")
        self._pipe.flush()

    def progress(self, progress: Progress) -> None:
        """Send where the run stands."""
        self.tell("progress", progress=asdict(progress))


def run(task: Task, supervisor: Supervisor) -> None:
    """Train as the task says, save, measure what was saved, report.

    Raises:
        TrainingError, CheckpointMismatch: with a reason in words.
    """
    retain = _load(task.retain_shards, task)
    if task.method is None:
        result = pretrain(
            EncoderSpec.model_validate(task.encoder),
            retain,
            PretrainParams.model_validate(task.params),
            seed=task.seed,
            device=task.device,
            on_progress=supervisor.progress,
        )
        checkpoints.save(result.learner, Path(task.result))
        supervisor.tell("trained", metrics=_metrics(result))
        return
    forget = _load(task.unlearn_shards, task)
    before = checkpoints.load(Path(str(task.base)))
    result = unlearn(
        before,
        retain,
        forget,
        task.method,
        parse_params(task.method, before.spec.framework, task.params),
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
    supervisor.tell("trained", metrics=_metrics(result) | {"evaluation": evaluation})


def _load(shards: list[str], task: Task) -> ImageSet:
    return load_shards([Path(shard) for shard in shards], task.encoder["image_size"])


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


def main() -> int:
    """Run the task of the command line; exit status 0 if the result file is complete."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    with os.fdopen(int(sys.argv[2]), "w") as pipe:
        supervisor = Supervisor(pipe)
        try:
            run(task, supervisor)
        except (TrainingError, checkpoints.CheckpointMismatch) as error:
            supervisor.tell("failed", reason=str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
