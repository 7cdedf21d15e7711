"""SimCLR: NT-Xent over the 2B views of a batch (Chen et al. 2020, arXiv 2002.05709).

Keeps nothing between steps.
"""

import torch
from torch import Tensor, nn

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.catalog import SimCLR as Objective
from expunge.unlearning.frameworks.architectures import build_encoder
from expunge.unlearning.frameworks.base import Contrast, Learner


def nt_xent_terms(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Alignment and log-partition, each (2, B), of (B, D) L2-normalised projections.

    Row 0 has the first views as anchors, row 1 the second; the partition of an anchor runs over
    the other 2B - 1 views, its positive included.
    """
    z = torch.cat([first, second])
    similarity = (z @ z.T) / temperature
    similarity.fill_diagonal_(float("-inf"))
    log_partition = similarity.logsumexp(dim=1).view(2, -1)
    alignment = (first * second).sum(dim=1) / temperature
    return alignment.expand(2, -1), log_partition


class SimCLR(Learner):
    """Encoder and two-layer projector; views of a step share one forward pass."""

    def __init__(self, spec: EncoderSpec, objective: Objective) -> None:
        super().__init__()
        self.spec = spec
        self.temperature = objective.temperature
        self.encoder, features = build_encoder(spec.architecture)
        hidden = objective.projector_hidden
        self.projector = nn.Sequential(
            nn.Linear(features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, objective.projector_dim),
        )

    @property
    def contrasts_within_batch(self) -> bool:
        """Negatives are the views of the batch's other samples."""
        return True

    def contrast(
        self, first: Tensor, second: Tensor, second_ids: Tensor, third: Tensor | None = None
    ) -> Contrast:
        """NT-Xent terms; gradients flow through all views, third ones included.

        Third views share the forward pass, so they count in its batch statistics, but they are
        never negatives.
        """
        del second_ids
        views = [first, second] if third is None else [first, second, third]
        z = self.projections(torch.cat(views))
        z1, z2, z3 = z.tensor_split([len(first), 2 * len(first)])
        with torch.autocast(z.device.type, enabled=False):
            alignment, log_partition = nt_xent_terms(z1, z2, self.temperature)
            cosine = None if third is None else (z1[len(z1) - len(z3) :] * z3).sum(dim=1)
        return Contrast(alignment, log_partition, cosine)
