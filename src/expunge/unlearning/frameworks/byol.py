"""BYOL: predict a momentum encoder's projection of another view (Grill et al. 2020, arXiv 2006.07733).

Has no negatives: nothing is ever pushed apart by its own objective.
"""

import copy
import math
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.unlearning import catalog
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.frameworks.architectures import build_encoder
from expunge.unlearning.frameworks.base import Contrast, Learner


def regression_terms(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Alignment 2 s(q, z) and partition 2, both (B,), of (B, D) L2-normalised rows.

    Their difference is |q - z|^2 = 2 - 2 s(q, z), BYOL's eq. 2; the constant stands where a
    framework with negatives has its log-partition.
    """
    alignment = 2 * (prediction * target).sum(dim=1)
    return alignment, torch.full_like(alignment, 2.0)


class BYOL(Learner):
    """Online encoder, projector and predictor, and the target's momentum encoder and projector."""

    def __init__(self, spec: EncoderSpec, objective: catalog.BYOL) -> None:
        super().__init__()
        self.spec = spec
        self.target_momentum = objective.target_momentum
        self.encoder, features = build_encoder(spec.architecture)
        self.projector = _mlp(features, objective.hidden, objective.projector_dim)
        self.predictor = _mlp(objective.projector_dim, objective.hidden, objective.projector_dim)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def contrast(
        self, first: Tensor, second: Tensor, second_ids: Tensor, third: Tensor | None = None
    ) -> Contrast:
        """Regression terms of both directions (row 0 predicts from the first views).

        A positive pair is two views of one sample; there are no negative pairs. Targets get no
        gradient. Third views are refused: no method that needs them is defined here.
        """
        del second_ids
        if third is not None:
            raise ValueError("BYOL has no term for third views")
        both = torch.cat([first, second])
        projected = self.projector(self.encoder(both).float()).float()
        prediction = F.normalize(self.predictor(projected).float(), dim=1)
        with torch.no_grad():
            z = self.target_projector(self.target_encoder(both).float()).float()
            target = F.normalize(z, dim=1)
        with torch.autocast(first.device.type, enabled=False):
            z1, z2 = target.chunk(2)
            alignment, constant = regression_terms(prediction, torch.cat([z2, z1]))
        return Contrast(alignment.view(2, -1), constant.view(2, -1))

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """Move the target: momentum 1 - (1 - tau)(cos(pi k/K) + 1)/2 at the k-th of K steps."""
        share = (1 - self.target_momentum) * (math.cos(math.pi * progress) + 1) / 2
        pairs = chain(
            zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True),
            zip(self.target_projector.parameters(), self.projector.parameters(), strict=True),
        )
        for target, online in pairs:
            target.lerp_(online, share)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
