"""What CLIP remembers of image-caption pairs: cosines, retrieval, and membership from cosines.

Runs encoders in float32 and leaves them as they were. Never computes gradients.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import normalise
from expunge.unlearning.frameworks import CLIP
from expunge.unlearning.metrics.measure import PERCENT, Measure, mean_of, percentage
from expunge.unlearning.metrics.membership import Attack, encoder_attack

Array = NDArray[np.float64]
SetName = Literal["retain", "forget", "test"]

BATCH = 256
RECALL_AT = (1, 5)


@dataclass(frozen=True)
class PairMetrics:
    """The paper's CLIP columns and what reviewers ask for beside; cosines and shares times 100."""

    cosine: dict[SetName, Measure]
    """Mean cosine of an image with its own captions."""
    image_to_text: dict[str, Measure]
    """recall@k on held-out pairs: an own caption is among the k nearest of all test captions."""
    text_to_image: dict[str, Measure]
    """recall@k on held-out pairs: a caption's image is among the k nearest of all test images."""
    attack: Attack
    """Membership judged by that cosine: of retained against test samples, asked of U."""
    own_cosines: dict[SetName, Array] = field(repr=False, compare=False)
    """(n,) of each whole set, not times 100."""


def own_cosines(image: Tensor, text: Tensor, owner: Tensor) -> Tensor:
    """(N,) mean cosine of each of (N, F) normalised images with its own captions.

    text: (K, F) normalised captions; owner: (K,) int64 which image each is of; every image has one.
    """
    sums = torch.zeros(len(image)).index_add_(0, owner, (image[owner] * text).sum(dim=1))
    return sums / torch.bincount(owner, minlength=len(image))


def recalls(
    image: Tensor, text: Tensor, owner: Tensor, *, seed: int
) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """recall@1 and @5, image to text and text to image; arguments as of `own_cosines`.

    Ties go against the model: of equal cosines the wrong ones count as nearer.
    """
    cosines = image @ text.T
    own = owner == torch.arange(len(image)).view(-1, 1)
    best_own = cosines.masked_fill(~own, float("-inf")).amax(dim=1, keepdim=True)
    own_cosine = cosines.gather(0, owner.view(1, -1))
    wrong_texts = ((cosines >= best_own) & ~own).sum(dim=1)
    wrong_images = ((cosines >= own_cosine) & ~own).sum(dim=0)

    def recall(wrong: Tensor) -> dict[str, Measure]:
        return {
            f"recall@{k}": percentage(int((wrong < k).sum()), len(wrong), seed=seed)
            for k in RECALL_AT
        }

    return recall(wrong_texts), recall(wrong_images)


def embed(learner: CLIP, images: ImageSet, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Images, captions and owners for `own_cosines`, float32 on the CPU; plain images.

    Call within `measuring`. Raises ValueError for images without captions.
    """
    if images.captions is None:
        raise ValueError("CLIP is measured on pairs, and not every sample has a caption")
    spec, captions = learner.spec, images.captions
    rows, owner = captions.rows()
    tokens = captions.tokens[rows.to(captions.tokens.device)]
    image = [
        learner.projections(normalise(part.to(device), spec.mean, spec.std)).cpu()
        for part in torch.split(images.images, BATCH)
    ]
    text = [learner.text_features(part.to(device)).cpu() for part in torch.split(tokens, BATCH)]
    return torch.cat(image), torch.cat(text), owner


def measure_pairs(
    learner: CLIP,
    sets: dict[SetName, ImageSet],
    fitted: dict[SetName, NDArray[np.int64]],
    device: torch.device,
    *,
    seed: int,
) -> PairMetrics:
    """All of `PairMetrics`.

    fitted: positions in each set of the samples the attack works on. Call within `measuring`.
    """
    cosines: dict[SetName, Array] = {}
    for name, images in sets.items():
        image, text, owner = embed(learner, images, device)
        cosines[name] = own_cosines(image, text, owner).double().numpy()
        if name == "test":
            image_to_text, text_to_image = recalls(image, text, owner, seed=seed)
    scores = {name: cosines[name][fitted[name]] for name in sets}
    return PairMetrics(
        cosine={name: mean_of(PERCENT * each, seed=seed) for name, each in cosines.items()},
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        attack=encoder_attack(scores["retain"], scores["test"], scores["forget"], seed=seed),
        own_cosines=cosines,
    )
