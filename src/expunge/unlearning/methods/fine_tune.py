"""Fine-tuning: go on training on the retain set alone. Never sees an unlearn sample."""

from typing import ClassVar

from torch import Tensor

from expunge.unlearning.catalog import FineTuneParams
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod, own_objective


class FineTune(UnlearningMethod):
    """Minimises the framework's own objective on the retain set, from the given checkpoint."""

    uses_unlearn_set: ClassVar[bool] = False

    def __init__(self, params: FineTuneParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """The framework's own objective."""
        del sizes
        return own_objective(learner, batch)
