"""Unlearning methods, one file each; ids, parameters and defaults are in `catalog`."""

from expunge.unlearning.catalog import (
    METHODS,
    AlignmentCalibrationParams,
    FineTuneParams,
    GradientAscentParams,
    L1SparsityParams,
    NegGradParams,
    RetrainParams,
    RunParams,
    UnknownMethod,
)
from expunge.unlearning.methods.alignment_calibration import AlignmentCalibration
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod, own_objective
from expunge.unlearning.methods.fine_tune import FineTune
from expunge.unlearning.methods.gradient_ascent import GradientAscent
from expunge.unlearning.methods.l1_sparsity import L1Sparsity
from expunge.unlearning.methods.neg_grad import NegGrad
from expunge.unlearning.methods.retrain import Retrain

__all__ = ["Batch", "SetSizes", "UnlearningMethod", "make_method", "own_objective"]


def make_method(method: str, params: RunParams) -> UnlearningMethod:
    """The method with this id; raises UnknownMethod, or TypeError for another method's params."""
    match method, params:
        case "alignment_calibration", AlignmentCalibrationParams():
            return AlignmentCalibration(params)
        case "fine_tune", FineTuneParams():
            return FineTune(params)
        case "gradient_ascent", GradientAscentParams():
            return GradientAscent(params)
        case "l1_sparsity", L1SparsityParams():
            return L1Sparsity(params)
        case "neg_grad", NegGradParams():
            return NegGrad(params)
        case "retrain", RetrainParams():
            return Retrain(params)
        case known, _ if known in METHODS:
            raise TypeError(f"{type(params).__name__} are not the parameters of {method!r}")
        case _:
            raise UnknownMethod(method)
