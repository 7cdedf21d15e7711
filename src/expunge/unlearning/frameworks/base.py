"""What every framework offers the methods: features, projections, and contrast terms per sample.

Knows nothing of unlearning, batches or optimisers.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from expunge.unlearning.catalog import EncoderSpec


@dataclass(frozen=True)
class Contrast:
    """The parts of InfoNCE for a batch of B samples, float32.

    alignment: (rows, B), s(x, x+)/T of each anchor with its positive; log_partition: (rows, B),
    log sum exp(s(x, y)/T) over the positive and all negatives. SimCLR has two rows (each view is
    an anchor once), MoCo one. third: (n,) plain cosine of the last n samples' first and third
    views, or None without third views.
    """

    alignment: Tensor
    log_partition: Tensor
    third: Tensor | None = None

    def info_nce(self) -> Tensor:
        """The framework's own objective: scalar mean over rows and samples."""
        return (self.log_partition - self.alignment).mean()


class Learner(nn.Module, ABC):
    """An encoder with its projector and whatever else its objective keeps."""

    spec: EncoderSpec
    encoder: nn.Module
    projector: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """(B, F) float32 encoder outputs of (B, 3, S, S) normalised images."""
        features: Tensor = self.encoder(x).float()
        return features

    def projections(self, x: Tensor) -> Tensor:
        """(B, D) float32 projector outputs, L2-normalised."""
        return self.project(self.features(x))

    def project(self, features: Tensor) -> Tensor:
        """(B, D) float32 L2-normalised projections of (B, F) encoder features."""
        return F.normalize(self.projector(features).float(), dim=1)

    @property
    def bn_splits(self) -> int:
        """Groups that batch norm splits a batch into."""
        return 1

    @abstractmethod
    def contrast(
        self, first: Tensor, second: Tensor, second_ids: Tensor, third: Tensor | None = None
    ) -> Contrast:
        """Contrast terms of (B, 3, S, S) first views with second views as positives.

        second_ids: (B,) int64 ids of the samples in `second`; third: (n, 3, S, S) third views of
        the last n samples. May update what the framework keeps (MoCo's queue).
        """

    def advance(self) -> None:
        """Called once before each optimiser step."""

    def purge(self, ids: Tensor) -> int:
        """Drop stored outputs of the samples with these (n,) int64 ids; return how many."""
        del ids
        return 0
