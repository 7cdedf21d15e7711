"""Gradient penalty: go on training while the loss's slope at each unlearn sample is driven to one.

After arXiv 2405.07317, of which only a summary is public. Never needs samples outside D.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.unlearning.catalog import GradientPenaltyParams
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod

TARGET_NORM = 1.0
"""Of the gradient, in loss per unit of normalised pixels; that of WGAN-GP (arXiv 1704.00028)."""


def input_gradient_norms(losses: Tensor, inputs: Tensor) -> Tensor:
    """(n,) Euclidean norms of the gradient of `losses.sum()` at each of (n, 3, S, S) `inputs`.

    losses: (n,) of these samples, and of no others. Differentiable, so that a penalty on the norms
    has a gradient in the weights. A sample that leaves its own loss alone has norm 0, and there the
    penalty's gradient is 0 too.
    """
    (gradients,) = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
    norms: Tensor = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
    return norms


def penalty_terms(
    losses: Tensor, retain: int, norms: Tensor, sizes: SetSizes, params: GradientPenaltyParams
) -> dict[str, Tensor]:
    """`l(members) + lambda mean_U (norm - 1)^2`, the simplified form "MEMtrain + MEMGP".

    losses: (B,) with the `retain` retained samples first; norms: (B - retain,). The paper's summary
    does not say which members l runs over. `members = all`: over D, to whose training they all
    belonged, as `(|R| mean_R + |U| mean_U) / |D|` however the batch is mixed. `retain`: `mean_R`,
    so that unlearn samples are met in the penalty alone.
    """
    retain_loss, unlearn_loss = losses[:retain].mean(), losses[retain:].mean()
    penalty = (norms - TARGET_NORM).square().mean()
    members = retain_loss
    if params.members == "all":
        total = sizes.retain + sizes.unlearn
        members = (sizes.retain * retain_loss + sizes.unlearn * unlearn_loss) / total
    return {
        "loss": members + params.penalty_weight * penalty,
        "retain": retain_loss,
        "unlearn": unlearn_loss.detach(),
        "penalty": penalty,
        "gradient_norm": norms.mean().detach(),
    }


class GradientPenalty(UnlearningMethod):
    """Trains on retain and unlearn samples together, the latter with a penalty on their gradients.

    x is the first view of an unlearn sample, normalised pixels, and l(x) the sample's own objective
    under the framework, averaged over its rows. Within a batch a sample's loss also depends on the
    others, by batch norm and as negatives. The gradient is that of the sum over the batch's unlearn
    samples, so a view's share in the losses of other unlearn samples counts, its share in those of
    retained samples does not; with a single unlearn sample it is the gradient of l(x) itself. Both
    terms come from one forward pass, so MoCo's queue takes each key once.
    """

    uses_unlearn_set: ClassVar[bool] = True

    def __init__(self, params: GradientPenaltyParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """See `penalty_terms`; in float32 throughout, as is its backward pass.

        Under bfloat16 the double backward stays finite, but the weights' gradient has a cosine of
        0.82 to 0.97 with that in float32, and it is no faster (width 8, 32 pixels, on a CPU with
        AMX). Fused attention has no second derivative: CLIP's is the plain one here.
        """
        kept, inputs = batch.first[: batch.retain], batch.first[batch.retain :].detach().clone()
        inputs.requires_grad_()
        with (
            torch.autocast(batch.first.device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            first = torch.cat([kept, inputs])
            contrast = learner.contrast(first, batch.second, batch.second_ids)
            losses = contrast.sample_losses()
            norms = input_gradient_norms(losses[batch.retain :], inputs)
        return penalty_terms(losses, batch.retain, norms, sizes, self.params)
