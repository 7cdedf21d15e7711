"""l1-sparsity: fine-tune on the retain set while driving weights to zero (arXiv 2304.04934).

Never sees an unlearn sample.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from expunge.unlearning.catalog import L1SparsityParams
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Scalar sum of |w| over all trainable parameters: biases and norms count, frozen ones not."""
    return torch.stack([p.abs().sum() for p in parameters if p.requires_grad]).sum()


def penalty_weight(params: L1SparsityParams, epoch: int) -> float:
    """Lambda in the 0-based `epoch`.

    linear_decay: `lambda (1 - epoch / epochs)`, as in the code of the method's authors; constant: as
    in the code of arXiv 2406.03603.
    """
    if params.schedule == "constant":
        return params.l1_weight
    return params.l1_weight * (1 - epoch / params.epochs)


class L1Sparsity(UnlearningMethod):
    """Minimises the framework's own objective on the retain set plus lambda ||w||_1."""

    uses_unlearn_set: ClassVar[bool] = False

    def __init__(self, params: L1SparsityParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """`retain + penalty_weight * l1_norm`; a momentum encoder has no trainable parameters."""
        del sizes
        retain_loss = learner.contrast(batch.first, batch.second, batch.second_ids).mean_loss()
        norm = l1_norm(learner.parameters())
        loss = retain_loss + penalty_weight(self.params, batch.epoch) * norm
        return {"loss": loss, "retain": retain_loss, "l1_norm": norm}
