"""What is run at each scale: splits, encoders, pre-training, and the settings of every method."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.unlearning.catalog import CLIP, Architecture, EncoderSpec, MoCo, SimCLR

Entries = list[dict[str, Any]]
"""As a comparison takes them: method, params, grid."""


@dataclass(frozen=True)
class Encoder:
    """One framework at one scale."""

    spec: EncoderSpec
    pretraining: Mapping[str, Any]
    """Of Retrain too."""
    entries: Entries
    ablation: Entries
    """Alignment Calibration without its parts (table 5), over beta (figure 4), and with batch
    norm's statistics from retained images alone."""


@dataclass(frozen=True)
class Scale:
    """How much data and which encoders; sizes in images."""

    name: str
    train: int
    """Drawn for retain and unlearn set together."""
    unlearn: int
    validation: int
    """Drawn first and never used, as in the paper."""
    test: int
    caption_unlearn: int
    encoders: Mapping[str, Encoder]
    paper: str
    """Key of the paper's table that this stands beside, in `reference.json`."""


def _ablated(shared: Mapping[str, Any], betas: list[float], best: float) -> Entries:
    calibration = "alignment_calibration"
    return [
        {"method": calibration, "params": dict(shared), "grid": {"beta": betas}},
        {"method": calibration, "params": {**shared, "alpha": 0.0, "beta": best}},
        {"method": calibration, "params": {**shared, "alpha": 0.0, "beta": 0.0}},
        {"method": calibration, "params": {**shared, "beta": best, "bn_statistics": "retain"}},
    ]


MINI_PRETRAINING = {"epochs": 600, "batch_size": 40, "learning_rate": 0.06, "weight_decay": 1e-4}
_MINI = {"batch_size": 40, "weight_decay": 1e-4, "epochs": 20}
_MINI_ENTRIES: Entries = [
    {"method": "fine_tune", "params": _MINI, "grid": {"learning_rate": [0.01, 0.03, 0.06]}},
    {
        "method": "gradient_ascent",
        "params": {**_MINI, "epochs": 10},
        "grid": {"learning_rate": [1e-4, 1e-3, 3e-3]},
    },
    {"method": "neg_grad", "params": _MINI, "grid": {"learning_rate": [0.003, 0.01, 0.03]}},
    {
        "method": "l1_sparsity",
        "params": {**_MINI, "learning_rate": 0.03},
        "grid": {"l1_weight": [1e-5, 1e-4, 1e-3]},
    },
    {
        "method": "alignment_calibration",
        "params": _MINI,
        "grid": {"learning_rate": [0.03, 0.06], "beta": [0.0, 4.0, 8.0]},
    },
    {
        "method": "gradient_penalty",
        "params": {**_MINI, "epochs": 10},
        "grid": {"learning_rate": [0.003, 0.01]},
    },
]
_MINI_CLIP_PRETRAINING = {
    "epochs": 60,
    "batch_size": 128,
    "learning_rate": 5e-4,
    "weight_decay": 0.1,
}
_MINI_CLIP = {"batch_size": 128, "weight_decay": 0.1, "epochs": 8}
_MINI_CLIP_ENTRIES: Entries = [
    {"method": "fine_tune", "params": _MINI_CLIP, "grid": {"learning_rate": [2e-4, 5e-4]}},
    {
        "method": "gradient_ascent",
        "params": {**_MINI_CLIP, "epochs": 4},
        "grid": {"learning_rate": [5e-5, 2e-4]},
    },
    {"method": "neg_grad", "params": _MINI_CLIP, "grid": {"learning_rate": [1e-5, 1e-4, 3e-4]}},
    {"method": "l1_sparsity", "params": {**_MINI_CLIP, "learning_rate": 5e-4, "l1_weight": 1e-5}},
    {
        "method": "alignment_calibration",
        "params": {**_MINI_CLIP, "learning_rate": 2e-4},
        "grid": {"beta": [0.0, 0.5, 1.0, 16.0]},
    },
    {
        "method": "alignment_calibration",
        "params": {**_MINI_CLIP, "learning_rate": 5e-4},
        "grid": {"beta": [0.0, 1.0]},
    },
]

_PAPER_PRETRAINING = {"epochs": 200}
_PAPER_ENTRIES: Entries = [
    {"method": "fine_tune", "grid": {"learning_rate": [0.003, 0.01, 0.03]}},
    {"method": "gradient_ascent", "grid": {"learning_rate": [1e-6, 1e-5, 1e-4]}},
    {"method": "neg_grad", "grid": {"learning_rate": [0.003, 0.01, 0.03]}},
    {"method": "l1_sparsity", "grid": {"l1_weight": [1e-6, 1e-5, 1e-4]}},
    {"method": "alignment_calibration", "grid": {"beta": [0.0, 8.0, 12.0, 16.0]}},
    {"method": "gradient_penalty"},
]
_PAPER_HALF_ENTRIES: Entries = [
    *_PAPER_ENTRIES[:4],
    {
        "method": "alignment_calibration",
        "params": {"learning_rate": 0.02},
        "grid": {"beta": [0.0, 8.0, 12.0, 16.0]},
    },
    _PAPER_ENTRIES[5],
]


def _paper(entries: Entries, rate: float) -> dict[str, Encoder]:
    ablation = _ablated({"learning_rate": rate}, [0.0, 4.0, 8.0, 12.0, 16.0, 20.0], 12.0)
    specs = {"moco": MoCo(bn_splits=8), "simclr": SimCLR()}
    return {
        name: Encoder(EncoderSpec(objective=objective), _PAPER_PRETRAINING, entries, ablation)
        for name, objective in specs.items()
    }


def _small(width: int) -> Architecture:
    return Architecture(width=width)


SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="mini",
            train=160,
            unlearn=50,
            validation=0,
            test=1000,
            caption_unlearn=80,
            encoders={
                "moco": Encoder(
                    EncoderSpec(objective=MoCo(queue_size=40), architecture=_small(16)),
                    MINI_PRETRAINING,
                    _MINI_ENTRIES,
                    _ablated({**_MINI, "learning_rate": 0.06}, [0.0, 2.0, 4.0, 8.0, 16.0], 4.0),
                ),
                "simclr": Encoder(
                    EncoderSpec(objective=SimCLR(temperature=0.2), architecture=_small(16)),
                    MINI_PRETRAINING,
                    _MINI_ENTRIES,
                    _ablated({**_MINI, "learning_rate": 0.06}, [0.0, 2.0, 4.0, 8.0, 16.0], 4.0),
                ),
                "clip": Encoder(
                    EncoderSpec(objective=CLIP(context_length=32), image_size=64),
                    _MINI_CLIP_PRETRAINING,
                    _MINI_CLIP_ENTRIES,
                    [],
                ),
            },
            paper="cifar10_10pct",
        ),
        Scale(
            name="paper",
            train=45_000,
            unlearn=4_500,
            validation=5_000,
            test=10_000,
            caption_unlearn=0,
            encoders=_paper(_PAPER_ENTRIES, 0.006),
            paper="cifar10_10pct",
        ),
        Scale(
            name="paper-half",
            train=45_000,
            unlearn=22_500,
            validation=5_000,
            test=10_000,
            caption_unlearn=0,
            encoders=_paper(_PAPER_HALF_ENTRIES, 0.02),
            paper="cifar10_50pct",
        ),
        Scale(
            name="tiny",
            train=24,
            unlearn=8,
            validation=2,
            test=16,
            caption_unlearn=4,
            encoders={
                "simclr": Encoder(
                    EncoderSpec(objective=SimCLR(), architecture=_small(4)),
                    {"epochs": 2, "batch_size": 8},
                    [
                        {"method": "fine_tune", "params": {"epochs": 1}},
                        {"method": "alignment_calibration", "params": {"epochs": 1}},
                    ],
                    _ablated({"epochs": 1}, [0.0], 1.0),
                )
            },
            paper="cifar10_10pct",
        ),
    )
}
