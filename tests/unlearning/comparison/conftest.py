"""One small comparison with everything in it, run once for all tests of this folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from expunge.unlearning.candidates import Candidate, expand
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.comparison import Comparison, ComparisonProgress, OracleStore, compare
from expunge.unlearning.comparison.records import Cell, Gap, Row
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.training import pretrain

MakeImages = Callable[..., ImageSet]

SEEDS = [0, 3]
RETRAIN = {"epochs": 1, "batch_size": 8}
ENTRIES = [
    {"method": "fine_tune", "params": {"epochs": 1, "batch_size": 8}},
    {"method": "gradient_ascent", "params": {"epochs": 1}, "grid": {"learning_rate": [0.01, 5.0]}},
    {"method": "neg_grad", "params": {"epochs": 2, "batch_size": 8, "learning_rate": 0.02}},
]
BROKEN = {
    "method": "fine_tune",
    "params": {"epochs": 9, "learning_rate": 10.0, "weight_decay": 1.0, "batch_size": 4},
}
"""Its loss is not finite from the third epoch on."""


@dataclass(frozen=True)
class Case:
    """A checkpoint and what is to be forgotten: 20 retained, 7 unlearn and 10 test samples."""

    learner: Learner
    sets: tuple[ImageSet, ImageSet, ImageSet]
    candidates: list[Candidate]
    """Four that end well and one that does not."""
    retrain: dict[str, Any]
    seeds: list[int]


@dataclass(frozen=True)
class Compared:
    """A comparison, and all that was heard while it ran."""

    case: Case
    result: Comparison
    heard: list[ComparisonProgress]


@pytest.fixture(scope="session")
def _kept() -> dict[str, Compared]:
    return {}


@pytest.fixture
def case(make_images: MakeImages, simclr_spec: EncoderSpec) -> Case:
    sets = (make_images(20), make_images(7, seed=1), make_images(10, seed=2))
    trained = pretrain(simclr_spec, ImageSet.concat(sets[:2]), RETRAIN, seed=0)
    return Case(trained.learner, sets, expand([*ENTRIES, BROKEN], "simclr"), RETRAIN, SEEDS)


@pytest.fixture
def compared(case: Case, _kept: dict[str, Compared], tmp_path: Path) -> Compared:
    if not _kept:
        heard: list[ComparisonProgress] = []
        result = compare(
            case.learner,
            *case.sets,
            case.candidates,
            seeds=case.seeds,
            retrain=case.retrain,
            oracle=OracleStore(tmp_path),
            on_progress=heard.append,
        )
        _kept["only"] = Compared(case, result, heard)
    return _kept["only"]


def _make_row(
    label: str, proxy: float, gap: float | None, *, minutes: float = 1.0, **changes: Any
) -> Row:
    """A candidate's row with these two gaps, all else as if nothing had been measured."""
    row = Row(
        kind="candidate",
        label=label,
        method="fine_tune",
        params={"epochs": 1},
        columns={},
        forgetting_score=None,
        minutes=Cell(minutes, None, None, None, [0]),
        gaps={},
        avg_gap=None if gap is None else Gap(gap, 1.0),
        forgetting_score_gap=None,
        proxy_gap=Gap(proxy, 1.0),
        tow=None,
        over_unlearned=[],
        tests=[],
        relearning=None,
        best_epochs=None,
        reused=False,
        failure=None,
    )
    return replace(row, **changes)


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """`make_row(label, proxy_gap, avg_gap, minutes=1.0, **other_fields)`."""
    return _make_row
