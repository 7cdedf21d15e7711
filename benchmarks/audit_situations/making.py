"""Trains the encoders of one seed: before, an exact retrain, and what each situation made of it. Kept on disk."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import Architecture, EncoderSpec, MoCo, SimCLR
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.training import pretrain, unlearn

FORGOTTEN, RETAINED, CONTROL = 96, 288, 400
"""Images; so few that an encoder of this width learns them by heart."""
OTHERS = 96
"""Of the retained ones, whom the situations of `FOR_OTHERS` forget instead."""
ARCHITECTURE = Architecture(width=32)
SPECS: Mapping[str, EncoderSpec] = {
    "moco": EncoderSpec(architecture=ARCHITECTURE, objective=MoCo(queue_size=FORGOTTEN + RETAINED)),
    "simclr": EncoderSpec(architecture=ARCHITECTURE, objective=SimCLR(temperature=0.2)),
}
PRETRAINING = {"epochs": 600, "batch_size": 96, "learning_rate": 0.06, "weight_decay": 1e-4}
SHARED = {"batch_size": 96, "weight_decay": 1e-4, "learning_rate": 0.02, "epochs": 30}
"""Of everything that starts at the trained encoder."""
NOISE = 0.05
"""Standard deviation of what is added to each tensor, over the tensor's own."""
NOISY: Mapping[str, tuple[str, float, Callable[[Learner], nn.Module]]] = {
    "noise": ("before", NOISE, lambda learner: learner),
    "last_layer": ("before", 6 * NOISE, lambda learner: learner.projector),
    "projector_calibrated_noise": ("projector_calibrated", NOISE, lambda learner: learner.encoder),
}
"""Where each starts, how much is added, and to what."""
RETRAIN_SEED = 1000
"""Added to the seed: a retrain starts from other weights."""

CALIBRATION: Mapping[str, Mapping[str, float]] = {
    "calibrated": {"beta": 0.0},
    "calibrated_longer": {"beta": 0.0, "epochs": 60},
    "calibrated_beta_8": {"beta": 8.0},
    "calibrated_alpha_2_beta_4": {"alpha": 2.0, "beta": 4.0},
    "calibrated_alpha_4": {"alpha": 4.0, "beta": 0.0},
}
FOR_OTHERS: Mapping[str, str] = {
    "other_forgotten": "calibrated",
    "other_forgotten_beta_8": "calibrated_beta_8",
}
"""Situations in which another owner was forgotten, and by which setting."""
HONEST = ("retrained", *CALIBRATION)
"""Situations in which the images were forgotten; in all others they were not."""
WORDS = {
    "retrained": "exact retrain without them",
    "calibrated": "Alignment Calibration, α = 1, β = 0",
    "calibrated_longer": "Alignment Calibration, α = 1, β = 0, 60 epochs",
    "calibrated_beta_8": "Alignment Calibration, α = 1, β = 8",
    "calibrated_alpha_2_beta_4": "Alignment Calibration, α = 2, β = 4",
    "calibrated_alpha_4": "Alignment Calibration, α = 4, β = 0",
    "untouched": "nothing done",
    "noise": "noise added to all weights",
    "last_layer": "noise added to the projector only",
    "projector_calibrated": "Alignment Calibration of the projector only, α = 1, β = 8",
    "projector_calibrated_noise": "the same, and noise added to the encoder",
    "fine_tuned_on_all": "trained on with everything, theirs included",
    "other_forgotten": "Alignment Calibration for another owner, α = 1, β = 0",
    "other_forgotten_beta_8": "Alignment Calibration for another owner, α = 1, β = 8",
}


@dataclass(frozen=True)
class Data:
    """One seed's images."""

    forgotten: ImageSet
    retained: ImageSet
    control: ImageSet

    @property
    def everything(self) -> ImageSet:
        """What the encoder before is trained on."""
        return ImageSet.concat([self.forgotten, self.retained])


def load(spec: EncoderSpec, folder: Path, seed: int) -> Data:
    """Drawn by the seed from the first shard; the control is the first test images."""
    images = load_for(spec, [folder / "train-00.tar"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(100 + seed))
    control = load_for(spec, [folder / "test-00.tar"]).subset(torch.arange(CONTROL))
    return Data(
        images.subset(order[:FORGOTTEN]),
        images.subset(order[FORGOTTEN : FORGOTTEN + RETAINED]),
        control,
    )


class Maker:
    """Makes the encoders of one framework and seed, or loads them where they were made before."""

    def __init__(self, framework: str, seed: int, data: Data, folder: Path) -> None:
        self._spec = SPECS[framework]
        self._seed = seed
        self._data = data
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def make(self, situation: str) -> Learner:
        """The encoder after the situation; `before` and `untouched` are the same one."""
        if situation in ("before", "untouched"):
            return self._kept("before", lambda: self._pretrained(self._data.everything, 0))
        return self._kept(situation, lambda: self._after(situation))

    def _kept(self, name: str, make: Callable[[], Learner]) -> Learner:
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            print(f"{self._folder.name}: {name}", flush=True)
            partial = path.with_suffix(".partial")
            checkpoints.save(make(), partial)
            partial.rename(path)
        return checkpoints.load(path)

    def _pretrained(self, images: ImageSet, offset: int) -> Learner:
        return pretrain(self._spec, images, PRETRAINING, seed=self._seed + offset).learner

    def _after(self, situation: str) -> Learner:
        data = self._data
        match situation:
            case "retrained":
                return self._pretrained(data.retained, RETRAIN_SEED)
            case _ if situation in NOISY:
                start, share, part = NOISY[situation]
                return _noisy(self.make(start), share, part)
            case "projector_calibrated":
                return self._projector_calibrated()
            case "fine_tuned_on_all":
                # What it is asked to forget is not shown to this method, nor was it ever.
                return self._unlearned("fine_tune", data.everything, data.control, {})
            case _ if situation in FOR_OTHERS:
                other = data.retained.subset(torch.arange(OTHERS))
                rest = data.retained.subset(torch.arange(OTHERS, RETAINED))
                kept = ImageSet.concat([data.forgotten, rest])
                return self._calibrated(kept, other, FOR_OTHERS[situation])
            case _:
                return self._calibrated(data.retained, data.forgotten, situation)

    def _calibrated(self, retained: ImageSet, forgotten: ImageSet, setting: str) -> Learner:
        return self._unlearned("alignment_calibration", retained, forgotten, CALIBRATION[setting])

    def _projector_calibrated(self) -> Learner:
        before = self.make("before")
        frozen = copy.deepcopy(before)
        frozen.encoder.requires_grad_(requires_grad=False)
        data = self._data
        changed = self._unlearned(
            "alignment_calibration",
            data.retained,
            data.forgotten,
            CALIBRATION["calibrated_beta_8"],
            start=frozen,
        )
        # Batch norm's statistics moved all the same.
        changed.encoder.load_state_dict(before.encoder.state_dict())
        return changed

    def _unlearned(
        self,
        method: str,
        retained: ImageSet,
        forgotten: ImageSet,
        params: Mapping[str, Any],
        start: Learner | None = None,
    ) -> Learner:
        return unlearn(
            start or self.make("before"),
            retained,
            forgotten,
            method,
            {**SHARED, **params},
            seed=self._seed + 3,
        ).learner


def _noisy(learner: Learner, share: float, part: Callable[[Learner], nn.Module]) -> Learner:
    changed = copy.deepcopy(learner)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in part(changed).parameters():
            spread = tensor.std() if tensor.numel() > 1 else tensor.abs()
            tensor.add_(torch.randn(tensor.shape, generator=generator) * spread * share)
    return changed
