"""Finished runs, gathered by setting. Trains nothing and computes no table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from expunge.unlearning.candidates import Candidate
from expunge.unlearning.comparison.records import Kind, SampleScores
from expunge.unlearning.evaluation import Evaluation, Outcome

Array = NDArray[np.float64]
FORGETTING_SCORE = "forgetting_score"
_JUDGED = ("emia", "cmia", "ua")


@dataclass(frozen=True)
class Run:
    """One setting under one seed."""

    seed: int
    evaluation: Evaluation
    forgetting: Array | None = None
    """(U,) alignment before minus after; None for the checkpoint before."""
    seconds: float | None = None
    reused: bool = False
    """Whether the weights were read from an oracle store."""
    relearned: int | None = None
    """Epochs; None where the cap was not enough, or nobody asked."""
    best_epoch: int | None = None
    """Whose weights these are; None where nobody asked for the best."""

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """Per sample what every column, and the forgetting score, is a mean of."""
        found = self.evaluation.outcomes()
        if self.forgetting is not None:
            found[FORGETTING_SCORE] = Outcome("forget", self.forgetting, 1.0)
        return found


@dataclass(frozen=True)
class Failure:
    """A run that ended without an encoder that can be measured."""

    seed: int
    reason: str


@dataclass(frozen=True)
class Setting:
    """One row's runs, in the order of the seeds."""

    kind: Kind
    label: str
    runs: list[Run]
    candidate: Candidate | None = None
    """What was run; None for the checkpoint before."""
    failures: Sequence[Failure] = ()

    @property
    def columns(self) -> list[str]:
        """Ids of the table's columns; none without a successful run."""
        return list(self.runs[0].evaluation.table()) if self.runs else []

    @property
    def outcomes(self) -> list[dict[str, Outcome]]:
        """One mapping a seed."""
        return [run.outcomes for run in self.runs]

    def under_the_seeds_of(self, other: "Setting") -> "Setting":
        """This setting with the seeds only under which the other succeeded."""
        seeds = {run.seed for run in other.runs}
        runs = [run for run in self.runs if run.seed in seeds]
        return Setting(self.kind, self.label, runs, self.candidate, self.failures)


@dataclass(frozen=True)
class Reference:
    """What rows are held against."""

    before: Setting
    retrain: Setting | None
    """None where Retrain was not asked for."""
    relearn: bool


def sample_scores(setting: Setting) -> list[SampleScores]:
    """Every unlearn sample under every seed that succeeded."""
    found = []
    for run in setting.runs:
        scores = run.evaluation.scores["forget"]
        unchanged = np.zeros(len(scores.keys))
        judged = {name: run.outcomes[name] for name in _JUDGED if name in run.outcomes}
        found.append(
            SampleScores(
                label=setting.label,
                seed=run.seed,
                keys=scores.keys,
                alignment=scores.alignment,
                forgetting_score=unchanged if run.forgetting is None else run.forgetting,
                judged={name: each.values.astype(np.bool_) for name, each in judged.items()},
                confidence=scores.confidence,
            )
        )
    return found
