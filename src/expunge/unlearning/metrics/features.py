"""Encoder features of image sets in eval mode: plain, cropped and flipped, or over training views.

Runs encoders in float32 and leaves them as they were. Never computes gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from expunge.evidence.audit.alignment import self_alignment
from expunge.unlearning.data.augmentation import crop_and_flip
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.randomness import mix, uniforms
from expunge.unlearning.data.views import Views, normalise
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.frameworks.architectures import lay_out
from expunge.unlearning.hardware import seeded

BATCH_IMAGES = 512


@contextmanager
def measuring(learner: Learner, device: torch.device) -> Iterator[None]:
    """The learner on `device` in eval mode, without gradients; back home and as it was after.

    One that is there in eval mode already is run as it is laid out.
    """
    was_training, home = learner.training, next(learner.parameters()).device
    ready = not was_training and home == device
    if not ready:
        learner.to(device).eval()
        learner.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad(), seeded(0, device):
            yield
    finally:
        if not ready:
            learner.to(home).train(was_training)
        if was_training:
            lay_out(learner, bn_splits=learner.bn_splits)


def plain_features(learner: Learner, images: ImageSet, device: torch.device) -> Tensor:
    """(N, F) float32 on `device`: features of the images as they are, normalised by the spec."""
    spec = learner.spec
    parts = []
    for start in range(0, len(images), BATCH_IMAGES):
        batch = images.images[start : start + BATCH_IMAGES].to(device)
        parts.append(learner.features(normalise(batch, spec.mean, spec.std)))
    return torch.cat(parts)


def augmented_features(
    learner: Learner, images: ImageSet, device: torch.device, epoch: int, *, seed: int
) -> Tensor:
    """(N, F) float32 on `device`: features after the crop and flip of one epoch."""
    spec = learner.spec
    parts = []
    for start in range(0, len(images), BATCH_IMAGES):
        rows = slice(start, start + BATCH_IMAGES)
        batch, ids = images.images[rows].to(device), images.ids[rows].to(device)
        changed = crop_and_flip(batch, uniforms(mix(seed, epoch), ids, 3))
        parts.append(learner.features(normalise(changed, spec.mean, spec.std)))
    return torch.cat(parts)


def view_alignment(
    learner: Learner, images: ImageSet, device: torch.device, *, views: int, seed: int
) -> NDArray[np.float64]:
    """(N,) mean cosine over the pairs of `views` >= 2 training-style views of each image.

    A view depends on seed and image alone, so two encoders see the same ones.
    """
    spec = learner.spec
    make = Views(spec.image_size, spec.mean, spec.std, seed=seed)
    parts = []
    for start in range(0, len(images), BATCH_IMAGES):
        rows = slice(start, start + BATCH_IMAGES)
        batch, ids = images.images[rows].to(device), images.ids[rows].to(device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for view in range(views):
            total = total + F.normalize(learner.features(make(batch, ids, view)), dim=1).double()
        parts.append(self_alignment(total.cpu().numpy(), views))
    return np.concatenate(parts)
