"""Contrastive unlearning of a classifier (Lee et al. 2024, arXiv 2401.10458).

Needs labels and a classifier; never a second view.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.unlearning.catalog import ContrastiveUnlearningParams, MethodNotForFramework
from expunge.unlearning.frameworks import Learner, Supervised
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod


def unlearning_loss(
    unlearn: Tensor,
    unlearn_labels: Tensor,
    retain: Tensor,
    retain_labels: Tensor,
    temperature: float,
) -> Tensor:
    """Scalar mean over unlearn samples of `log sum_N exp(s(x, n)/T) - mean_P s(x, p)/T`.

    That is `-mean_P log(exp(s(x, p)/T) / sum_N exp(s(x, n)/T))`: P are the batch's retained samples
    of other classes, N those of x's own. unlearn and retain: (n, F) and (m, F) embeddings, compared
    by cosine; labels: (n,) and (m,) int64. A part that has no sample is 0: without N, as when a whole
    class is unlearned, x is drawn to other classes only, without P only pushed from its own.
    (The authors' code weighs the first part by m / |P|, and is infinite without N.)
    """
    similarity = F.normalize(unlearn, dim=1) @ F.normalize(retain, dim=1).T / temperature
    own = unlearn_labels.view(-1, 1) == retain_labels.view(1, -1)
    pushed = own.any(dim=1)
    partition = similarity.masked_fill(~own, float("-inf"))[pushed].logsumexp(dim=1)
    drawn = similarity.masked_fill(own, 0).sum(dim=1) / (~own).sum(dim=1).clamp(min=1)
    return (partition.sum() - drawn.sum()) / len(unlearn)


class ContrastiveUnlearning(UnlearningMethod):
    """Pushes unlearn samples from their own class to others, and keeps classifying retained ones.

    Batches are mixed as D is, with at least one unlearn sample; the authors' code pairs each batch of
    unlearn samples with several as large of retained ones. Embeddings are the encoder's features,
    where theirs has a projector before the classifier.
    """

    uses_unlearn_set: ClassVar[bool] = True

    def __init__(self, params: ContrastiveUnlearningParams) -> None:
        self.params = params

    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """`retain_weight` cross-entropy of R plus `unlearn_weight` times `unlearning_loss`."""
        del sizes
        if not isinstance(learner, Supervised):
            raise MethodNotForFramework("contrastive_unlearning", learner.spec.framework)
        features = learner.features(batch.first)
        logits = learner.classifier(features[: batch.retain]).float()
        labels = batch.second
        with torch.autocast(features.device.type, enabled=False):
            retain_loss = F.cross_entropy(logits, labels[: batch.retain])
            contrastive = unlearning_loss(
                features[batch.retain :],
                labels[batch.retain :],
                features[: batch.retain],
                labels[: batch.retain],
                self.params.temperature,
            )
        loss = self.params.retain_weight * retain_loss + self.params.unlearn_weight * contrastive
        return {"loss": loss, "retain": retain_loss, "contrastive": contrastive}
