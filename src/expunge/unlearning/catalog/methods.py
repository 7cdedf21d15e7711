"""The methods on offer: ids, titles, frameworks they are defined for, defaults per framework.

Never computes a loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from expunge.unlearning.catalog.encoders import Framework
from expunge.unlearning.catalog.params import (
    AlignmentCalibrationParams,
    ContrastiveUnlearningParams,
    CoUnParams,
    FineTuneParams,
    GradientAscentParams,
    GradientPenaltyParams,
    L1SparsityParams,
    NegGradParams,
    PretrainParams,
    RetrainParams,
    RunParams,
)

AC_PAPER = "Alignment Calibration, arXiv 2406.03603"
GP_PAPER = "Machine Unlearning in Contrastive Learning, arXiv 2405.07317"
CU_PAPER = "Contrastive Unlearning, arXiv 2401.10458"
COUN_PAPER = "CoUn, arXiv 2509.16391"

Defaults = Mapping[str, Mapping[str, Any]]
"""What differs by framework from the defaults of the parameter class."""

_CLIP = {"optimiser": "adamw", "batch_size": 256, "epochs": 8, "weight_decay": 0.2}
PRETRAIN_DEFAULTS: Defaults = {
    "clip": _CLIP | {"epochs": 35, "learning_rate": 5e-4, "warmup_epochs": 2},
    "supervised": {"epochs": 200, "learning_rate": 0.1, "batch_size": 128},
}
"""CLIP as in the Alignment Calibration paper; weight decay and beta as open_clip's own for CLIP."""


@dataclass(frozen=True)
class Method:
    """One way to unlearn, as offered to users."""

    id: str
    title: str
    summary: str
    params: type[RunParams]
    frameworks: frozenset[str]
    source: str
    """The paper the method and its defaults come from."""
    defaults: Defaults = field(default_factory=dict)
    experimental: bool = False
    """Offered without figures yet that say whether it forgets."""

    def defaults_for(self, framework: str) -> dict[str, Any]:
        """Every parameter's default for encoders of `framework`."""
        return self.params(**self.defaults.get(framework, {})).model_dump()


_ALL = frozenset(get_args(Framework))
_WITH_CLASSES = frozenset({"supervised"})
_WITH_NEGATIVES = frozenset({"simclr", "moco", "clip"})
"""Alignment Calibration draws pairs of different samples together and needs a partition."""

METHODS: Mapping[str, Method] = {
    method.id: method
    for method in (
        Method(
            id="alignment_calibration",
            title="Alignment Calibration",
            summary="Keeps training on everything, but draws unlearn samples together and pushes "
            "views of one unlearn sample apart.",
            params=AlignmentCalibrationParams,
            frameworks=_WITH_NEGATIVES,
            source=AC_PAPER,
            defaults={"clip": _CLIP | {"learning_rate": 2e-4, "beta": 0.5}},
        ),
        Method(
            id="contrastive_unlearning",
            title="Contrastive unlearning",
            summary="Pushes unlearn samples from their own class towards others, while retained "
            "ones go on being classified.",
            params=ContrastiveUnlearningParams,
            frameworks=_WITH_CLASSES,
            source=CU_PAPER,
            experimental=True,
        ),
        Method(
            id="coun",
            title="CoUn",
            summary="Goes on classifying the retain set while contrasting two views of each image.",
            params=CoUnParams,
            frameworks=_WITH_CLASSES,
            source=COUN_PAPER,
            experimental=True,
        ),
        Method(
            id="fine_tune",
            title="Fine-tuning",
            summary="Goes on training on the retain set and lets the encoder forget the rest.",
            params=FineTuneParams,
            frameworks=_ALL,
            source=AC_PAPER,
            defaults={"clip": _CLIP | {"learning_rate": 2e-4}},
        ),
        Method(
            id="gradient_ascent",
            title="Gradient ascent",
            summary="Maximises the loss on the unlearn set alone; quick, and hard on the rest.",
            params=GradientAscentParams,
            frameworks=_ALL,
            source=AC_PAPER,
            defaults={"clip": _CLIP | {"epochs": 4, "learning_rate": 5e-5}},
        ),
        Method(
            id="gradient_penalty",
            title="Gradient penalty",
            summary="Keeps training on the retain set while driving the loss's gradient at each "
            "unlearn sample to norm one.",
            params=GradientPenaltyParams,
            frameworks=_ALL,
            source=GP_PAPER,
            defaults={"clip": _CLIP | {"epochs": 4, "learning_rate": 2e-4}},
        ),
        Method(
            id="l1_sparsity",
            title="l1-sparsity",
            summary="Goes on training on the retain set and drives weights to zero.",
            params=L1SparsityParams,
            frameworks=_ALL,
            source=AC_PAPER,
            defaults={"clip": _CLIP | {"learning_rate": 5e-4, "l1_weight": 1e-6}},
        ),
        Method(
            id="neg_grad",
            title="NegGrad",
            summary="Keeps training on the retain set while raising the loss on the unlearn set.",
            params=NegGradParams,
            frameworks=_ALL,
            source=AC_PAPER,
            defaults={"clip": _CLIP | {"learning_rate": 3e-5}},
        ),
        Method(
            id="retrain",
            title="Retraining",
            summary="Exact unlearning: trains fresh weights on the retain set alone.",
            params=RetrainParams,
            frameworks=_ALL,
            source=AC_PAPER,
            defaults=PRETRAIN_DEFAULTS,
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


def parse_params(method: str, framework: str, params: Mapping[str, Any]) -> RunParams:
    """Validate `params` for `method` on an encoder of `framework`; absent ones get defaults.

    Raises UnknownMethod, MethodNotForFramework, or pydantic.ValidationError naming the bounds.
    Defaults are those of the framework.
    """
    if method not in METHODS:
        raise UnknownMethod(method)
    entry = METHODS[method]
    if framework not in entry.frameworks:
        raise MethodNotForFramework(method, framework)
    parsed = entry.params.model_validate({**entry.defaults.get(framework, {}), **params})
    queue_init = getattr(parsed, "queue_init", None)
    if queue_init is not None and framework != "moco":
        wrong = PydanticCustomError(
            "not_for_framework",
            "only moco has a queue; leave it out for {framework}",
            {"framework": framework},
        )
        raise ValidationError.from_exception_data(
            entry.params.__name__,
            [InitErrorDetails(type=wrong, loc=("queue_init",), input=queue_init)],
        )
    return parsed


def pretrain_params(framework: str, params: Mapping[str, Any]) -> PretrainParams:
    """Validate parameters of pre-training; absent ones get the framework's defaults.

    Raises pydantic.ValidationError naming the bounds.
    """
    return PretrainParams.model_validate({**PRETRAIN_DEFAULTS.get(framework, {}), **params})
