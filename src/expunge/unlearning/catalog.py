"""What can be asked of the algorithms: encoder specifications, method ids, parameters, bounds.

Pydantic only. Never imports torch, so the API can validate and describe jobs without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FULL_WIDTH = 64
"""Channels of the first residual stage in the published ResNets."""

AC_PAPER = "Alignment Calibration, arXiv 2406.03603"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Temperature = Annotated[float, Field(gt=0, le=10, description="Divides every cosine similarity.")]
ProjectorDim = Annotated[int, Field(ge=2, le=4096, description="Dimensions of a projection.")]


class SimCLR(_Strict):
    """NT-Xent over the 2B views of a batch; two-layer projector with batch norm."""

    framework: Literal["simclr"] = "simclr"
    temperature: Temperature = 0.5
    projector_hidden: int = Field(
        default=512, ge=2, le=8192, description="Hidden units of the projector."
    )
    projector_dim: ProjectorDim = 128


class MoCo(_Strict):
    """InfoNCE against a queue of keys from a momentum encoder; linear projector."""

    framework: Literal["moco"] = "moco"
    temperature: Temperature = 0.1
    projector_dim: ProjectorDim = 128
    queue_size: int = Field(default=4096, ge=1, le=1_048_576, description="Keys kept as negatives.")
    key_momentum: float = Field(
        default=0.99, ge=0, lt=1, description="Share of the key encoder kept at each step."
    )
    bn_splits: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Groups a batch is split into for batch norm; the paper's code uses 8.",
    )


class Architecture(_Strict):
    """The encoder's network. Only `resnet18_cifar` has a free width."""

    name: Literal["resnet18_cifar", "resnet18", "resnet34", "resnet50"] = "resnet18_cifar"
    width: int = Field(
        default=FULL_WIDTH, ge=4, le=256, description="Channels of the first residual stage."
    )

    @model_validator(mode="after")
    def _fixed_width(self) -> Self:
        if self.name != "resnet18_cifar" and self.width != FULL_WIDTH:
            raise ValueError(f"{self.name} has width {FULL_WIDTH}; only resnet18_cifar may differ")
        return self


Channels = Annotated[tuple[float, float, float], Field(strict=False)]


class EncoderSpec(_Strict):
    """Everything needed to build a learner but its weights."""

    objective: Annotated[SimCLR | MoCo, Field(discriminator="framework")]
    architecture: Architecture = Architecture()
    image_size: int = Field(default=32, ge=16, le=512, description="Height and width in pixels.")
    mean: Channels = Field(default=IMAGENET_MEAN, description="Subtracted per channel, of [0, 1].")
    std: Channels = Field(default=IMAGENET_STD, description="Divided by per channel, of [0, 1].")

    @model_validator(mode="after")
    def _positive_std(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError("std must be positive in every channel")
        return self

    @property
    def framework(self) -> str:
        """Id of the framework: `simclr` or `moco`."""
        return self.objective.framework


class SgdParams(_Strict):
    """Stochastic gradient descent, as every method and pre-training use it."""

    epochs: int = Field(default=10, ge=1, le=10_000, description="Passes over the retain set.")
    learning_rate: float = Field(default=0.006, gt=0, le=10, description="Step size of SGD.")
    batch_size: int = Field(
        default=512, ge=2, le=65_536, description="Images a step; a smaller set is used whole."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(default=5e-4, ge=0, le=1, description="On every parameter.")


Schedule = Literal["cosine", "constant"]


class PretrainParams(SgdParams):
    """Train fresh weights on a data set."""

    epochs: int = Field(default=800, ge=1, le=10_000, description="Passes over the data.")
    learning_rate: float = Field(default=0.06, gt=0, le=10, description="First step size of SGD.")
    schedule: Schedule = Field(default="cosine", description="Of the learning rate, per epoch.")


class RetrainParams(PretrainParams):
    """Exact unlearning: pre-train fresh weights on the retain set alone."""

    epochs: int = Field(default=800, ge=1, le=10_000, description="Passes over the retain set.")


class FineTuneParams(SgdParams):
    """Go on training on the retain set; the paper searches the rate in [0.003, 0.03]."""

    learning_rate: float = Field(
        default=0.01, gt=0, le=10, description="Constant; the paper searches [0.003, 0.03]."
    )


class GradientAscentParams(SgdParams):
    """Maximise the framework's loss on the unlearn set; retained samples are never shown."""

    epochs: int = Field(default=5, ge=1, le=10_000, description="Passes over the unlearn set.")
    learning_rate: float = Field(
        default=1e-5,
        gt=0,
        le=10,
        description="Constant; the paper searches [1e-6, 1e-4]. Too large a rate ruins the encoder "
        "for every sample.",
    )
    batch_size: int = Field(
        default=512,
        ge=2,
        le=65_536,
        description="Unlearn samples a step; a smaller unlearn set is used whole.",
    )


class L1SparsityParams(SgdParams):
    """Go on training on the retain set with a penalty on the sum of all absolute weights."""

    l1_weight: float = Field(
        default=3e-5,
        gt=0,
        le=1,
        description="Lambda: weighs the sum of |w| over all trainable parameters, biases and norms "
        "included; the paper searches [1e-6, 1e-3].",
    )
    schedule: Literal["linear_decay", "constant"] = Field(
        default="linear_decay",
        description="Of lambda. linear_decay: falls linearly over the epochs, as in the code of the "
        "method's authors. constant: as in the code behind the Alignment Calibration paper's tables.",
    )


class NegGradParams(SgdParams):
    """Descend on retained and ascend on unlearn samples; the paper searches rates [0.003, 0.03]."""

    learning_rate: float = Field(
        default=0.01, gt=0, le=10, description="Constant; the paper searches [0.003, 0.03]."
    )
    protocol: Literal["corrected", "released"] = Field(
        default="corrected",
        description="corrected: the losses of unlearn samples are negated, and the sets weigh as "
        "in D however a batch is mixed. released: as in the paper's code, each row of a batch "
        "weighs the same, and for SimCLR rows of other samples are negated instead.",
    )


class AlignmentCalibrationParams(SgdParams):
    """Weights of the three calibration terms of Alignment Calibration (eqs. 3-5)."""

    learning_rate: float = Field(
        default=0.006,
        gt=0,
        le=10,
        description="Constant; the paper uses 0.006 to forget 10 % and 0.02 to forget 50 %.",
    )
    alpha: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Weight of negative calibration: pairs of unlearn samples are drawn together "
        "(cosine divided by the temperature).",
    )
    beta: float = Field(
        default=8.0,
        ge=0,
        le=100,
        description="Weight of positive calibration: two views of one unlearn sample are pushed "
        "apart. Weighs the raw cosine, NOT divided by the temperature, as in the paper's code; "
        "the paper searches [0, 20].",
    )
    gamma: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Weight of performance preserving: unlearn samples are kept apart from all "
        "other samples.",
    )
    protocol: Literal["corrected", "released"] = Field(
        default="corrected",
        description="corrected: all terms are divided by |D|, as eq. 3 asks. released: the "
        "contrastive terms are divided by |R| + alpha |U|, as in the paper's code (the same for "
        "alpha = 1); needs alpha = gamma.",
    )

    @model_validator(mode="after")
    def _released_has_one_weight(self) -> Self:
        if self.protocol == "released" and self.alpha != self.gamma:
            raise ValueError("protocol 'released' needs alpha = gamma")
        return self


@dataclass(frozen=True)
class Method:
    """One way to unlearn, as offered to users."""

    id: str
    title: str
    summary: str
    params: type[SgdParams]
    frameworks: frozenset[str]
    source: str
    """The paper the method and its defaults come from."""


_CONTRASTIVE = frozenset({"simclr", "moco"})

METHODS: Mapping[str, Method] = {
    method.id: method
    for method in (
        Method(
            id="alignment_calibration",
            title="Alignment Calibration",
            summary="Keeps training on everything, but draws unlearn samples together and pushes "
            "views of one unlearn sample apart.",
            params=AlignmentCalibrationParams,
            frameworks=_CONTRASTIVE,
            source=AC_PAPER,
        ),
        Method(
            id="fine_tune",
            title="Fine-tuning",
            summary="Goes on training on the retain set and lets the encoder forget the rest.",
            params=FineTuneParams,
            frameworks=_CONTRASTIVE,
            source=AC_PAPER,
        ),
        Method(
            id="gradient_ascent",
            title="Gradient ascent",
            summary="Maximises the loss on the unlearn set alone; quick, and hard on the rest.",
            params=GradientAscentParams,
            frameworks=_CONTRASTIVE,
            source=AC_PAPER,
        ),
        Method(
            id="l1_sparsity",
            title="l1-sparsity",
            summary="Goes on training on the retain set and drives weights to zero.",
            params=L1SparsityParams,
            frameworks=_CONTRASTIVE,
            source=AC_PAPER,
        ),
        Method(
            id="neg_grad",
            title="NegGrad",
            summary="Keeps training on the retain set while raising the loss on the unlearn set.",
            params=NegGradParams,
            frameworks=_CONTRASTIVE,
            source=AC_PAPER,
        ),
        Method(
            id="retrain",
            title="Retraining",
            summary="Exact unlearning: trains fresh weights on the retain set alone.",
            params=RetrainParams,
            frameworks=_CONTRASTIVE,
            source=AC_PAPER,
        ),
    )
}


class UnknownMethod(ValueError):
    """No method has this id."""

    def __init__(self, method: str) -> None:
        super().__init__(f"unknown method {method!r}; known: {', '.join(sorted(METHODS))}")
        self.method = method


class MethodNotForFramework(ValueError):
    """The method is not defined for encoders of this framework."""

    def __init__(self, method: str, framework: str) -> None:
        known = ", ".join(sorted(METHODS[method].frameworks))
        super().__init__(f"method {method!r} is not for framework {framework!r}; for: {known}")
        self.method = method
        self.framework = framework


def parse_params(method: str, framework: str, params: Mapping[str, Any]) -> SgdParams:
    """Validate `params` for `method` on an encoder of `framework`; absent ones get defaults.

    Raises UnknownMethod, MethodNotForFramework, or pydantic.ValidationError naming the bounds.
    """
    if method not in METHODS:
        raise UnknownMethod(method)
    entry = METHODS[method]
    if framework not in entry.frameworks:
        raise MethodNotForFramework(method, framework)
    return entry.params.model_validate(dict(params))
