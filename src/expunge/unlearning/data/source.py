"""Batches of views, captions or labels from samples on the device, for the training loop."""

import torch
from torch import Tensor

from expunge.unlearning.catalog import CLIP, EncoderSpec, Supervised
from expunge.unlearning.data.augmentation import training_views
from expunge.unlearning.data.batches import StepIndices
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.randomness import mix, uniforms
from expunge.unlearning.errors import (
    CaptionError,
    CaptionLengthError,
    ImageSizeError,
    LabelError,
)
from expunge.unlearning.methods.base import Batch

VIEWS_PER_STEP = 3
"""View numbers reserved for each step; the third is made only where the method asks."""
_CAPTIONS = 1
_OTHER_VIEWS = 2
"""What the seed is mixed with, so that the choice of a caption does not depend on the view's, nor
that of a further view of retained samples on any other."""


def check_samples(samples: ImageSet, spec: EncoderSpec) -> None:
    """Raises ImageSizeError, CaptionError or LabelError if an encoder cannot be trained on them."""
    check_size(samples, spec)
    match spec.objective:
        case CLIP(context_length=tokens):
            if samples.captions is None:
                raise CaptionError
            if samples.captions.tokens.shape[1] != tokens:
                raise CaptionLengthError(samples.captions.tokens.shape[1], tokens)
        case Supervised(classes=classes):
            if samples.labels is None:
                raise LabelError(None, classes)
            for extreme in samples.labels.aminmax() if len(samples) else ():
                if not 0 <= int(extreme) < classes:
                    raise LabelError(int(extreme), classes)


def check_size(samples: ImageSet, spec: EncoderSpec) -> None:
    """Raises ImageSizeError if these images are not of the size that encoders of `spec` take."""
    if samples.image_size != spec.image_size:
        raise ImageSizeError(samples.image_size, spec.image_size)


class Source:
    """Makes the batch of a step: retained samples first, then unlearn ones.

    The same step of the same seed is always the same batch.
    """

    def __init__(
        self,
        samples: ImageSet,
        retain: int,
        spec: EncoderSpec,
        *,
        seed: int,
        third_view: bool,
        other_view: bool = False,
    ) -> None:
        self._samples = samples
        self._retain = retain
        self._pairing = spec.pairing
        self._views = training_views(spec, seed=seed)
        self._caption_seed = mix(seed, _CAPTIONS)
        self._third_view = third_view
        self._other_views = (
            training_views(spec, seed=mix(seed, _OTHER_VIEWS)) if other_view else None
        )

    def batch(self, indices: StepIndices, step: int, epoch: int) -> Batch:
        """The batch of 0-based `step`, counted over the whole run."""
        unlearn = indices.unlearn + self._retain
        first = torch.cat([indices.retain, unlearn])
        second = torch.cat([indices.retain, indices.partner + self._retain])
        number = step * VIEWS_PER_STEP
        return Batch(
            first=self._view(first, number),
            second=self._paired(second, number + 1),
            second_ids=self._samples.ids[second],
            retain=len(indices.retain),
            epoch=epoch,
            third=self._paired(unlearn, number + 2) if self._third_view else None,
            other=self._other(indices.retain, number),
        )

    def _view(self, index: Tensor, number: int) -> Tensor:
        return self._views(self._samples.images[index], _positions(index), number)

    def _other(self, index: Tensor, number: int) -> Tensor | None:
        if self._other_views is None:
            return None
        return self._other_views(self._samples.images[index], _positions(index), number)

    def _paired(self, index: Tensor, number: int) -> Tensor:
        if self._pairing == "label" and self._samples.labels is not None:
            return self._samples.labels[index]
        if self._pairing == "caption" and self._samples.captions is not None:
            draws = uniforms(mix(self._caption_seed, number), _positions(index), 1)
            return self._samples.captions.draw(index, draws[:, 0])
        return self._view(index, number)


def _positions(index: Tensor) -> Tensor:
    # Keyed by position: a sample that fills a small unlearn set twice needs two views.
    return torch.arange(len(index), device=index.device)
