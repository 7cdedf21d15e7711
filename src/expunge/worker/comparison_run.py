"""What a training process does for a comparison: run the methods, write tables, chart and spread of scores."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from expunge.unlearning import checkpoints
from expunge.unlearning.candidates import Candidate, Range
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.comparison import (
    Comparison,
    ComparisonProgress,
    OracleStore,
    compare,
    scores_csv,
    search,
    to_csv,
    to_dict,
    to_markdown,
    write_chart,
)
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.errors import TrainingError
from expunge.worker.supervisor_pipe import Supervisor
from expunge.worker.task import ComparisonTask


def run(task: ComparisonTask, supervisor: Supervisor) -> None:
    """Compare as the task says and write what was found into its results folder.

    Raises:
        TrainingError, CheckpointMismatch: with a reason in words.
    """
    learner = checkpoints.load(Path(task.base))
    retain = _load(task.retain_shards, learner.spec)
    forget = _load(task.unlearn_shards, learner.spec)
    test = _load(task.test_shards, learner.spec)
    asked = task.settings
    common: dict[str, Any] = {
        "seeds": asked["seeds"],
        "retrain": asked["retrain_params"],
        "device": task.device,
        "protocol": asked["protocol"],
        "oracle": OracleStore(Path(task.oracles)),
        "relearn": asked["relearn"],
        "keep_best": asked["keep_best"],
        "recompute": task.recompute,
        "on_progress": Reporter(supervisor),
    }
    try:
        if asked["search"] is not None:
            found = search(learner, retain, forget, test, **_wanted(asked["search"]), **common)
        else:
            candidates = [Candidate.model_validate(each) for each in asked["candidates"]]
            found = compare(learner, retain, forget, test, candidates, **common)
    except ValueError as error:
        # What the library cannot measure, as it says in words.
        raise TrainingError(str(error)) from error
    write(found, Path(task.results))
    supervisor.tell("done", result={})


class Reporter:
    """Tells the supervisor how far a comparison is and how long it may still take."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._started = time.monotonic()

    def __call__(self, progress: ComparisonProgress) -> None:
        """Send one message; the estimate takes all runs for equally long."""
        training = progress.training
        share = 0.0 if training is None else training.step / training.steps
        done = progress.done + share
        elapsed = time.monotonic() - self._started
        eta = elapsed / done * (progress.total - done) if done else None
        self._supervisor.tell("progress", progress=asdict(progress) | {"eta_seconds": eta})


def write(found: Comparison, folder: Path) -> None:
    """Tables as JSON, CSV and Markdown, the chart, and how scores are spread."""
    (folder / "table.json").write_text(json.dumps(to_dict(found)))
    (folder / "table.csv").write_text(to_csv(found))
    (folder / "table.md").write_text(to_markdown(found))
    (folder / "scores.csv").write_text(scores_csv(found))
    write_chart(found, folder / "chart.png")


def _wanted(asked: dict[str, Any]) -> dict[str, Any]:
    ranges = {name: Range.model_validate(each) for name, each in asked["ranges"].items()}
    return asked | {"ranges": ranges}


def _load(shards: dict[str, list[str]], spec: EncoderSpec) -> ImageSet:
    """All samples, named by data set and position: their own names are their owners' business."""
    sets = []
    for dataset_id, paths in sorted(shards.items()):
        images = load_for(spec, [Path(path) for path in paths])
        names = [f"{dataset_id}/{position:06d}" for position in range(len(images))]
        sets.append(replace(images, keys=names))
    return ImageSet.concat(sets)
