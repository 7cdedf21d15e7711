"""Alignment Calibration (arXiv 2406.03603, eqs. 3-5).

Never needs a retrained encoder, and never a batch without unlearn samples.
"""

from typing import ClassVar

import torch
from torch import Tensor

from expunge.unlearning.catalog import AlignmentCalibrationParams
from expunge.unlearning.frameworks import Contrast, Learner
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod


def calibration_losses(
    contrast: Contrast, retain: int, sizes: SetSizes, params: AlignmentCalibrationParams
) -> dict[str, Tensor]:
    """The terms of eqs. 3-5 and their sum, from a batch with its `retain` retained samples first.

    `L_retain + eps L_unlearn` with eps = |U|/|R|, all divided by 1 + eps, so that
    `loss = (|R| L_retain + |U| (alpha N + gamma P)) / |D| + beta C |U|/|D|` where
    L_retain is InfoNCE over retained samples, N = -mean s(x, y)/T over pairs x != y of U,
    P = mean log-partition over U, C = mean plain cosine of two views of one sample of U.
    Each expectation is a mean over its part of the batch, so the weights hold whatever share of
    the batch is to be unlearned. With one unlearn sample there are no pairs and N is zero.

    With alpha = gamma and a batch mixed as D is, this is the released loss: InfoNCE over the mixed
    batch, an unlearn sample's positive being another unlearn sample, plus beta |U|/|D| C. (The
    released code divides the first part by |R| + alpha |U| instead of |D|: `protocol`.)
    """
    total = sizes.retain + sizes.unlearn
    retain_loss = (contrast.log_partition - contrast.alignment)[:, :retain].mean()
    negative = -contrast.alignment[:, retain:].mean()
    if sizes.unlearn == 1:
        negative = torch.zeros_like(negative)
    if contrast.third is None:
        raise ValueError("alignment calibration needs third views")
    preserving = contrast.log_partition[:, retain:].mean()
    positive = contrast.third.mean()
    released = params.protocol == "released"
    divisor = sizes.retain + params.alpha * sizes.unlearn if released else total
    unlearn_loss = params.alpha * negative + params.gamma * preserving
    loss = (sizes.retain * retain_loss + sizes.unlearn * unlearn_loss) / divisor
    loss = loss + params.beta * sizes.unlearn / total * positive
    return {
        "loss": loss,
        "retain": retain_loss,
        "negative_calibration": negative,
        "positive_calibration": positive,
        "performance_preserving": preserving,
    }


class AlignmentCalibration(UnlearningMethod):
    """Trains on retain and unlearn samples together, with three terms for the latter."""

    uses_unlearn_set: ClassVar[bool] = True
    uses_third_view: ClassVar[bool] = True
    swaps_positives: ClassVar[bool] = True

    def __init__(self, params: AlignmentCalibrationParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """See `calibration_losses`."""
        contrast = learner.contrast(batch.first, batch.second, batch.second_ids, batch.third)
        return calibration_losses(contrast, batch.retain, sizes, self.params)
