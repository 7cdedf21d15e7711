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
    """The parts of a framework's loss for a batch of B samples, float32.

    alignment: (rows, B), how well each anchor fits what it is paired with; log_partition: (rows, B),
    what that is held against. For InfoNCE they are s(x, x+)/T and log sum exp(s(x, y)/T) over the
    positive and all negatives; each framework's `contrast` says what they are there. SimCLR, CLIP
    and BYOL have two rows (each side of a pair is an anchor once), the others one. third: (n,)
    plain cosine of the last n samples' images with their own third view (CLIP: caption), or None.
    """

    alignment: Tensor
    log_partition: Tensor
    third: Tensor | None = None

    def sample_losses(self) -> Tensor:
        """(B,) the framework's own objective of each sample: mean over its rows."""
        return (self.log_partition - self.alignment).mean(dim=0)

    def mean_loss(self) -> Tensor:
        """The framework's own objective: scalar mean over rows and samples."""
        return (self.log_partition - self.alignment).mean()


class Learner(nn.Module, ABC):
    """An encoder with its projector and whatever else its objective keeps."""

    spec: EncoderSpec
    encoder: nn.Module
    projector: nn.Module
    """The identity where the objective works on the encoder's outputs themselves."""

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
    def towers(self) -> list[nn.Module]:
        """The trained networks that take samples: where a step's memory goes."""
        return [self.encoder]

    @property
    def bn_splits(self) -> int:
        """Groups that batch norm splits a batch into."""
        return 1

    @abstractmethod
    def contrast(
        self, first: Tensor, second: Tensor, second_ids: Tensor, third: Tensor | None = None
    ) -> Contrast:
        """Contrast terms of (B, 3, S, S) first views with what each is paired with.

        second: (B, 3, S, S) views, (B, L) int64 tokens of captions, or (B,) int64 labels, as the
        specification's `pairing` says; second_ids: (B,) int64 ids of the samples it comes from;
        third: the same kind as `second`, of the last n samples themselves. May update what the
        framework keeps (MoCo's queue).
        """

    @property
    def has_projector(self) -> bool:
        """Whether the objective works on other outputs than the encoder's."""
        return not isinstance(self.projector, nn.Identity)

    @property
    def contrasts_within_batch(self) -> bool:
        """Whether a sample's negatives are its batch's other samples, so that one alone has none."""
        return False

    def advance(self, progress: float) -> None:
        """Called once before each optimiser step, with the share of the run's steps already taken."""

    def purge(self, ids: Tensor) -> int:
        """Drop stored outputs of the samples with these (n,) int64 ids; return how many."""
        del ids
        return 0
