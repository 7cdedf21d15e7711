"""What can be asked of the algorithms: encoder specifications, method ids, parameters, bounds.

Pydantic only. Never imports torch, so the API can validate and describe jobs without it.
"""

from expunge.unlearning.catalog.encoders import (
    BYOL,
    CLIP,
    FULL_WIDTH,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL_CLIP,
    Architecture,
    EncoderSpec,
    Framework,
    MoCo,
    OpenClip,
    SimCLR,
    Supervised,
    clip_configurations,
)
from expunge.unlearning.catalog.methods import (
    AC_PAPER,
    METHODS,
    Method,
    MethodNotForFramework,
    UnknownMethod,
    parse_params,
    pretrain_params,
)
from expunge.unlearning.catalog.params import (
    AlignmentCalibrationParams,
    FineTuneParams,
    GradientAscentParams,
    L1SparsityParams,
    NegGradParams,
    PretrainParams,
    RetrainParams,
    RunParams,
    UnlearnParams,
)

__all__ = [
    "AC_PAPER",
    "BYOL",
    "CLIP",
    "FULL_WIDTH",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "METHODS",
    "SMALL_CLIP",
    "AlignmentCalibrationParams",
    "Architecture",
    "EncoderSpec",
    "FineTuneParams",
    "Framework",
    "GradientAscentParams",
    "L1SparsityParams",
    "Method",
    "MethodNotForFramework",
    "MoCo",
    "NegGradParams",
    "OpenClip",
    "PretrainParams",
    "RetrainParams",
    "RunParams",
    "SimCLR",
    "Supervised",
    "UnknownMethod",
    "UnlearnParams",
    "clip_configurations",
    "parse_params",
    "pretrain_params",
]
