"""Parameters of pre-training and of each method, with bounds and meaning. Never runs anything."""

from typing import Literal, Self

from pydantic import Field, model_validator

from expunge.unlearning.catalog.strict import Strict


class RunParams(Strict):
    """What every run has: how long, how fast, over how many samples a step."""

    epochs: int = Field(default=10, ge=1, le=10_000, description="Passes over the retain set.")
    learning_rate: float = Field(
        default=0.006, gt=0, le=10, description="Step size of the optimiser."
    )
    batch_size: int = Field(
        default=512, ge=2, le=65_536, description="Images a step; a smaller set is used whole."
    )
    optimiser: Literal["sgd", "adamw"] = Field(
        default="sgd", description="sgd: with momentum. adamw: betas (momentum, 0.98)."
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Momentum of SGD, first beta of AdamW."
    )
    weight_decay: float = Field(default=5e-4, ge=0, le=1, description="On every parameter.")


class UnlearnParams(RunParams):
    """What every method has that starts at the given checkpoint."""

    bn_statistics: Literal["all", "retain"] = Field(
        default="all",
        description="Whose images batch norm's running statistics come from. all: from every image "
        "a step shows, unlearn samples included, as in the code of the Alignment Calibration paper. "
        "retain: estimated anew from retained images after the last step.",
    )
    queue_init: Literal["checkpoint", "retain", "random"] | None = Field(
        default=None,
        description="MoCo only: the queue at the first step, none of it from unlearn samples. "
        "checkpoint: as stored, without the rows of unlearn samples; the default, unless no row is "
        "left. retain: keys of retained samples, made by the key encoder. random: random "
        "directions, as in the code of the Alignment Calibration paper.",
    )


Schedule = Literal["cosine", "constant"]


class PretrainParams(RunParams):
    """Train fresh weights on a data set."""

    epochs: int = Field(default=800, ge=1, le=10_000, description="Passes over the data.")
    learning_rate: float = Field(
        default=0.06, gt=0, le=10, description="Highest step size of the optimiser."
    )
    schedule: Schedule = Field(default="cosine", description="Of the learning rate, per epoch.")
    warmup_epochs: int = Field(
        default=0,
        ge=0,
        le=1_000,
        description="The learning rate rises linearly over so many epochs first.",
    )


class RetrainParams(PretrainParams):
    """Exact unlearning: pre-train fresh weights on the retain set alone."""

    epochs: int = Field(default=800, ge=1, le=10_000, description="Passes over the retain set.")


class FineTuneParams(UnlearnParams):
    """Go on training on the retain set; the paper searches the rate in [0.003, 0.03]."""

    learning_rate: float = Field(
        default=0.01, gt=0, le=10, description="Constant; the paper searches [0.003, 0.03]."
    )


class GradientAscentParams(UnlearnParams):
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


class GradientPenaltyParams(UnlearnParams):
    """Go on training while the loss's gradient at unlearn samples is driven to norm one."""

    epochs: int = Field(default=5, ge=1, le=10_000, description="Passes over the retain set.")
    learning_rate: float = Field(default=0.006, gt=0, le=10, description="Constant.")
    penalty_weight: float = Field(
        default=1.0,
        ge=0,
        le=1_000,
        description="Lambda: weighs the mean over unlearn samples of (norm - 1)^2, where the norm is "
        "that of the loss's gradient in normalised pixels.",
    )
    members: Literal["retain", "all"] = Field(
        default="retain",
        description="What the training loss beside the penalty runs over; the paper's summary does "
        "not say. retain: retained samples. all: unlearn samples too, each weighing the same, which "
        "keeps on teaching them.",
    )


class ContrastiveUnlearningParams(UnlearnParams):
    """Weights of the two losses of contrastive unlearning; defaults are those of its code."""

    epochs: int = Field(default=3, ge=1, le=10_000, description="Passes over the retain set.")
    learning_rate: float = Field(default=0.001, gt=0, le=10, description="Constant.")
    batch_size: int = Field(
        default=128, ge=2, le=65_536, description="Images a step; a smaller set is used whole."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="On every parameter.")
    temperature: float = Field(
        default=0.7, gt=0, le=10, description="Divides every cosine similarity."
    )
    unlearn_weight: float = Field(
        default=3.0,
        ge=0,
        le=100,
        description="Of the contrastive loss, which pushes unlearn samples from their own class to "
        "others.",
    )
    retain_weight: float = Field(
        default=1.0, ge=0, le=100, description="Of the cross-entropy of retained samples."
    )


class CoUnParams(UnlearnParams):
    """Classify and contrast retained samples alone; defaults are ours."""

    learning_rate: float = Field(default=0.01, gt=0, le=10, description="Constant.")
    contrast_weight: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Of the contrastive loss between two views of retained samples, beside their "
        "cross-entropy.",
    )
    temperature: float = Field(
        default=0.5, gt=0, le=10, description="Divides every cosine similarity."
    )


class L1SparsityParams(UnlearnParams):
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


class NegGradParams(UnlearnParams):
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


class AlignmentCalibrationParams(UnlearnParams):
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
