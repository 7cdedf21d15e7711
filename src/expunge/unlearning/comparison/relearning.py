"""Relearn time: how soon an encoder that forgot knows the unlearn samples again.

Trains copies; never changes the encoder it is asked about.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import Learner, MoCo
from expunge.unlearning.training import unlearn

RELEARN_CAP = 10
"""Epochs after which the search for the old level ends."""
MIN_SAMPLES = 2
"""One sample has nothing to be told from, so its contrastive loss says nothing."""
_STILL = {"learning_rate": 1e-12, "momentum": 0.0, "weight_decay": 0.0}
"""Steps too small to move a float32 weight."""


@dataclass(frozen=True)
class LossLevel:
    """The unlearn samples' mean training loss in each epoch, weights held still."""

    losses: list[float]


def loss_level(learner: Learner, forget: ImageSet, *, seed: int, device: str) -> LossLevel:
    """What U's training loss is for this encoder, epoch by epoch over RELEARN_CAP + 1 epochs."""
    return LossLevel(_losses(learner, forget, _STILL, seed=seed, device=device))


def relearn_epochs(
    learner: Learner, forget: ImageSet, level: LossLevel, *, seed: int, device: str
) -> int | None:
    """Epochs of the framework's own objective on U alone until its loss is back at `level`.

    Rate and batch are fine-tuning's defaults for the framework, whatever method was used to
    unlearn. Epoch by epoch the loss is held against that of the level's encoder on the same views
    in the same order (and, for MoCo, a queue that starts with U's own keys, so that it is as full,
    whatever the encoder's was left with); counted are the whole epochs before the
    first that is as low. None if RELEARN_CAP were not enough. Raises TrainingError.
    """
    losses = _losses(learner, forget, {}, seed=seed, device=device)
    return epochs_until(losses, level.losses)


def epochs_until(losses: Sequence[float], level: Sequence[float]) -> int | None:
    """Position of the first loss that is no higher than the level's; None if none is."""
    pairs = enumerate(zip(losses, level, strict=True))
    return next((epoch for epoch, (loss, goal) in pairs if loss <= goal), None)


def _losses(
    learner: Learner, forget: ImageSet, params: dict[str, float], *, seed: int, device: str
) -> list[float]:
    queue = {"queue_init": "retain"} if isinstance(learner, MoCo) else {}
    # Fine-tuning trains on its retain set alone, which is U here: the only loss is U's.
    result = unlearn(
        learner,
        retain=forget,
        forget=forget,
        method="fine_tune",
        params={**params, **queue, "epochs": RELEARN_CAP + 1},
        seed=seed,
        device=device,
    )
    return [epoch["loss"] for epoch in result.history]
