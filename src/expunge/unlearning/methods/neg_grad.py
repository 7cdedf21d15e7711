"""NegGrad: descend on retained samples and ascend on unlearn samples in the same batch.

Never swaps positives: an unlearn sample's loss is the framework's own.
"""

from typing import ClassVar

import torch
from torch import Tensor

from expunge.unlearning.catalog import NegGradParams
from expunge.unlearning.frameworks import Contrast, Learner
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod


def corrected_losses(contrast: Contrast, retain: int, sizes: SetSizes) -> dict[str, Tensor]:
    """`(|R| mean_R - |U| mean_U) / |D|` of a batch with its `retain` retained samples first.

    For a batch mixed as D is, this is `(sum_R - sum_U) / B` over the InfoNCE of its B samples, the
    loss in the code of arXiv 2406.03603. Weighing by the sets keeps that expectation where a small
    unlearn set has a larger share of the batch than of D.
    """
    row_loss = contrast.log_partition - contrast.alignment
    retain_loss, unlearn_loss = row_loss[:, :retain].mean(), row_loss[:, retain:].mean()
    total = sizes.retain + sizes.unlearn
    loss = (sizes.retain * retain_loss - sizes.unlearn * unlearn_loss) / total
    return {"loss": loss, "retain": retain_loss, "unlearn": unlearn_loss}


def released_losses(contrast: Contrast, retain: int, order: Tensor) -> dict[str, Tensor]:
    """`(sum of unmarked - sum of marked rows) / rows`, with the marks of the paper's code.

    order: (B,) int64, a random permutation: where each sample stands in the batch, which that code
    does not sort into retained and unlearn samples. It repeats each sample's mark once per row of
    the loss (a, a, b, b), but SimCLR's rows run a, b, a, b: marks fall on rows of other samples.
    MoCo has one row a sample, and there the marks are right.
    """
    row_loss = contrast.log_partition - contrast.alignment
    rows, batch = row_loss.shape
    unlearn = torch.arange(batch, device=row_loss.device) >= retain
    marked = unlearn[order].repeat_interleave(rows).view(rows, batch)
    shuffled = row_loss[:, order]
    return {
        "loss": torch.where(marked, -shuffled, shuffled).mean(),
        "retain": row_loss[:, :retain].mean(),
        "unlearn": row_loss[:, retain:].mean(),
    }


class NegGrad(UnlearningMethod):
    """Trains on batches of D with the loss of unlearn samples negated."""

    uses_unlearn_set: ClassVar[bool] = True

    def __init__(self, params: NegGradParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """See `corrected_losses` and `released_losses`."""
        contrast = learner.contrast(batch.first, batch.second, batch.second_ids)
        if self.params.protocol == "corrected":
            return corrected_losses(contrast, batch.retain, sizes)
        order = torch.randperm(len(batch.first), device=batch.first.device)
        return released_losses(contrast, batch.retain, order)
