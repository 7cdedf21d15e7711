"""What MoCo's queue holds before the first step of an unlearning run. Never touches a weight."""

import torch

from expunge.unlearning.data.augmentation import training_views
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import MoCo
from expunge.unlearning.hardware import seeded

QUEUE_BATCH = 512
"""Samples whose keys are made at a time."""


@torch.no_grad()
def fill_queue(learner: MoCo, retain: ImageSet, queue_init: str, seed: int) -> None:
    """Prepare the queue for the first step; see `UnlearnParams.queue_init`."""
    if queue_init == "checkpoint":
        return
    learner.empty_queue()
    with seeded(seed, learner.queue.device):
        if queue_init == "random":
            learner.scramble_queue()
            return
        chosen = torch.randperm(len(retain))[: len(learner.queue)]
        views = training_views(learner.spec, seed=seed)
        for start in range(0, len(chosen), QUEUE_BATCH):
            samples = retain.subset(chosen[start : start + QUEUE_BATCH])
            samples = samples.to(learner.queue.device)
            learner.fill_queue(views(samples.images, samples.ids, 0), samples.ids)
