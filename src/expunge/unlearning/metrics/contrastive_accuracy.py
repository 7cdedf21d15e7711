"""How well an encoder still tells samples apart: does an image come nearest to its own other view?

Needs no labels and no training. Runs encoders in float32 and leaves them as they were.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views, normalise
from expunge.unlearning.frameworks import CLIP, Learner
from expunge.unlearning.metrics.features import measuring

BATCH_IMAGES = 256
CHUNK = 1024
"""Anchors compared with all partners at a time."""


def contrastive_accuracy(
    learner: Learner, images: ImageSet, device: torch.device, *, seed: int
) -> float:
    """Share in [0, 1] of `images` whose anchor is nearest to its own partner among all partners.

    Anchor and partner are the first and second training-style view, compared by the cosine of
    encoder features; a view depends on `seed` and image alone, so two encoders see the same ones.
    CLIP's are the plain image and its first caption, in the space both towers share. Chance is
    1 / len(images). Raises ValueError for no images, and for CLIP's without captions.
    """
    if len(images) == 0:
        raise ValueError("contrastive accuracy needs at least one image")
    with measuring(learner, device):
        if isinstance(learner, CLIP):
            return nearest_share(*_pairs(learner, images, device))
        return nearest_share(*_views(learner, images, device, seed))


def nearest_share(anchors: Tensor, partners: Tensor) -> float:
    """Share of rows of (N, D) `anchors` with a larger cosine to their own row of `partners` than to any other.

    Both float32, any length. Ties go against the encoder: one that maps all samples to a point has 0.
    """
    anchors, partners = F.normalize(anchors, dim=1), F.normalize(partners, dim=1)
    right = 0
    for start in range(0, len(anchors), CHUNK):
        cosines = anchors[start : start + CHUNK] @ partners.T
        rows = torch.arange(len(cosines), device=cosines.device)
        own = cosines[rows, start + rows]
        cosines[rows, start + rows] = float("-inf")
        right += int((own > cosines.amax(dim=1)).sum())
    return right / len(anchors)


def _views(
    learner: Learner, images: ImageSet, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    spec = learner.spec
    make = Views(spec.image_size, spec.mean, spec.std, seed=seed)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(images), BATCH_IMAGES):
        rows = slice(start, start + BATCH_IMAGES)
        batch, ids = images.images[rows].to(device), images.ids[rows].to(device)
        for view, part in enumerate(parts):
            part.append(learner.features(make(batch, ids, view)))
    return torch.cat(parts[0]), torch.cat(parts[1])


def _pairs(learner: CLIP, images: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    if images.captions is None:
        raise ValueError("CLIP is measured on pairs, and not every sample has a caption")
    spec, captions = learner.spec, images.captions
    tokens = captions.tokens[captions.first]
    image = [
        learner.projections(normalise(part.to(device), spec.mean, spec.std))
        for part in torch.split(images.images, BATCH_IMAGES)
    ]
    text = [learner.text_features(part.to(device)) for part in torch.split(tokens, BATCH_IMAGES)]
    return torch.cat(image), torch.cat(text)
