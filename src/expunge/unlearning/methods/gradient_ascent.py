"""Gradient ascent: maximise the framework's own objective on U. Never sees a retained sample."""

from typing import ClassVar

from torch import Tensor

from expunge.unlearning.catalog import GradientAscentParams
from expunge.unlearning.errors import NoNegativesError
from expunge.unlearning.frameworks import Contrast, Learner
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod


def ascent_losses(contrast: Contrast) -> dict[str, Tensor]:
    """Minus the framework's objective over unlearn samples, so that descending on `loss` ascends.

    In SimCLR a sample's negatives are unlearn samples too, in MoCo whatever the queue holds: at
    first keys of retained samples, soon those of unlearn samples. Weight decay is the optimiser's
    and still shrinks the weights, as in the code of arXiv 2406.03603.
    """
    unlearn_loss = contrast.mean_loss()
    return {"loss": -unlearn_loss, "unlearn": unlearn_loss}


class GradientAscent(UnlearningMethod):
    """Ascends on batches of unlearn samples alone, each with its own positive."""

    uses_retain_set: ClassVar[bool] = False
    uses_unlearn_set: ClassVar[bool] = True

    def __init__(self, params: GradientAscentParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """See `ascent_losses`; raises NoNegativesError for a single sample that would have none."""
        if learner.contrasts_within_batch and sizes.unlearn == 1:
            raise NoNegativesError("gradient_ascent")
        return ascent_losses(learner.contrast(batch.first, batch.second, batch.second_ids))
