"""The demo's numbers: what is trained, how it forgets, how it is audited. Found by search, not tuned here."""

from dataclasses import dataclass, replace
from typing import Any

from expunge.embedded.demonstration.split import Sizes


@dataclass(frozen=True)
class Setting:
    """Everything that decides the demo's result but the images and the seed."""

    sizes: Sizes
    encoder: dict[str, Any]
    pretraining: dict[str, Any]
    unlearning: dict[str, Any]
    method: str = "alignment_calibration"
    views: int = 10
    matrix_size: int = 64
    batch_window_seconds: int = 2
    """Long enough for both owners' requests to fall into one job."""


SAMPLE = Setting(
    sizes=Sizes(retained=96, owner=32, control=512),
    encoder={
        "objective": {"framework": "simclr", "temperature": 0.2},
        "architecture": {"name": "resnet18_cifar", "width": 16},
        "image_size": 32,
    },
    pretraining={"epochs": 160, "learning_rate": 0.06, "batch_size": 40, "weight_decay": 1e-4},
    unlearning={"epochs": 48, "learning_rate": 0.03, "batch_size": 40, "beta": 4.0},
)
"""The bundled sample, on two CPU cores in minutes: few images seen often are remembered as such."""

FULL = replace(
    SAMPLE,
    sizes=Sizes(retained=None, owner=2500, control=2500),
    encoder={
        "objective": {"framework": "simclr", "temperature": 0.5},
        "architecture": {"name": "resnet18_cifar", "width": 64},
        "image_size": 32,
    },
    pretraining={"epochs": 100, "learning_rate": 0.06, "batch_size": 512},
    unlearning={"epochs": 10, "learning_rate": 0.006, "beta": 8.0, "batch_size": 512},
)
"""All of CIFAR-10, a tenth of it forgotten as in the paper: for a GPU."""
