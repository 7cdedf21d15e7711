"""Batch norm's running statistics, estimated anew from chosen samples. Never changes a weight."""

import torch
from torch import nn

from expunge.unlearning.data.augmentation import training_views
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.frameworks.architectures import SplitBatchNorm2d

MAX_IMAGES = 4096
"""Drawn from larger sets: a mean over so many images hardly moves with more."""
BATCH = 512
MIN_BATCH = 2

_Norms = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - torch's only common base


@torch.no_grad()
def estimate_statistics(
    learner: Learner, images: ImageSet, *, seed: int, device: torch.device
) -> None:
    """Replace the running statistics that evaluation uses by those of training views of `images`.

    Plain averages over batches, in float32, of the encoder and the projector; momentum twins keep
    theirs. Nothing happens without batch norm or with fewer than two images.
    """
    parts = [learner.encoder, learner.projector]
    norms = [m for part in parts for m in part.modules() if isinstance(m, _Norms)]
    if not norms or len(images) < MIN_BATCH:
        return
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    batches = [b for b in torch.split(order[:MAX_IMAGES], BATCH) if len(b) >= MIN_BATCH]
    views = training_views(learner.spec, seed=seed)
    home, modes = next(learner.parameters()).device, [norm.training for norm in norms]
    momenta = [norm.momentum for norm in norms]
    splits = [getattr(norm, "splits", 1) for norm in norms]
    learner.to(device)
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None
        if isinstance(norm, SplitBatchNorm2d):
            norm.splits = 1
    for index in batches:
        samples = images.subset(index).to(device)
        learner.projections(views(samples.images, samples.ids, 0))
    for norm, mode, momentum, groups in zip(norms, modes, momenta, splits, strict=True):
        norm.train(mode)
        norm.momentum = momentum
        if isinstance(norm, SplitBatchNorm2d):
            norm.splits = groups
    learner.to(home)
