"""Finished runs as JSON files, so that a benchmark that was stopped goes on where it was."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from expunge.unlearning.candidates import Candidate
from expunge.unlearning.comparison.runs import Failure, Run, Setting
from expunge.unlearning.evaluation import Classification, Evaluation, Scores
from expunge.unlearning.metrics.measure import Measure
from expunge.unlearning.metrics.membership import Attack
from expunge.unlearning.metrics.pairs import PairMetrics

_KINDS = {
    kind.__name__: kind
    for kind in (
        Attack,
        Classification,
        Evaluation,
        Failure,
        Measure,
        PairMetrics,
        Run,
        Scores,
        Setting,
    )
}
_KIND, _ARRAY = "kind", "array"


def write(path: Path, setting: Setting) -> None:
    """Replace the file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_encoded(setting)) + "\n")
    partial.replace(path)


def read(path: Path) -> Setting | None:
    """The setting in the file; None if there is no file."""
    if not path.exists():
        return None
    setting: Setting = _decoded(json.loads(path.read_text()))
    return setting


def _encoded(value: Any) -> Any:
    if isinstance(value, Candidate):
        return {_KIND: "Candidate", "fields": value.model_dump()}
    if dataclasses.is_dataclass(value):
        fields = {f.name: _encoded(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_KIND: type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray):
        return {_KIND: _ARRAY, "dtype": str(value.dtype), "values": value.tolist()}
    if isinstance(value, dict):
        return {key: _encoded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(each) for each in value]
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.get(_KIND) == _ARRAY:
        return np.array(value["values"], dtype=value["dtype"])
    if value.get(_KIND) == "Candidate":
        return Candidate(**value["fields"])
    if value.get(_KIND) in _KINDS:
        return _KINDS[value[_KIND]](**{k: _decoded(v) for k, v in value["fields"].items()})
    return {key: _decoded(each) for key, each in value.items()}
