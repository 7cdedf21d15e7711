"""Retraining: fresh weights trained on the retain set alone. Never sees an unlearn sample."""

from typing import ClassVar

from torch import Tensor

from expunge.unlearning.catalog import RetrainParams
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod, own_objective


class Retrain(UnlearningMethod):
    """Exact unlearning: nothing of the given learner but its specification is used."""

    uses_unlearn_set: ClassVar[bool] = False

    def __init__(self, params: RetrainParams) -> None:
        self.params = params

    def start(self, learner: Learner, seed: int) -> Learner:
        """A learner with fresh weights from `seed`."""
        return build(learner.spec, seed=seed)

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """The framework's own objective."""
        del sizes
        return own_objective(learner, batch)
