"""Supervised classification by cross-entropy, the point of reference of arXiv 2405.07317.

Needs labels; keeps nothing between steps.
"""

import torch
from torch import Tensor, nn

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.catalog import Supervised as Objective
from expunge.unlearning.frameworks.architectures import build_encoder
from expunge.unlearning.frameworks.base import Contrast, Learner


def cross_entropy_terms(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The true class's logit and log sum exp over classes, each (1, B), of (B, C) logits."""
    alignment = logits.gather(1, labels.view(-1, 1)).view(1, -1)
    return alignment, logits.logsumexp(dim=1).unsqueeze(0)


class Supervised(Learner):
    """Encoder and linear classifier."""

    def __init__(self, spec: EncoderSpec, objective: Objective) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, features = build_encoder(spec.architecture)
        self.projector = nn.Identity()
        self.classifier = nn.Linear(features, objective.classes)

    def contrast(
        self, first: Tensor, second: Tensor, second_ids: Tensor, third: Tensor | None = None
    ) -> Contrast:
        """Cross-entropy as a contrast of classes.

        A positive pair is an image with its class, negative pairs are the image with every other
        class. second: (B,) int64 labels that the classifier has.
        """
        del second_ids, third
        logits = self.classifier(self.features(first)).float()
        with torch.autocast(logits.device.type, enabled=False):
            alignment, log_partition = cross_entropy_terms(logits, second)
        return Contrast(alignment, log_partition)
