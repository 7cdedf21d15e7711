"""Unlearning methods, one file each; ids, parameters and defaults are in `catalog`."""

from collections.abc import Callable, Mapping
from typing import Any

from expunge.unlearning.catalog import METHODS, RunParams, UnknownMethod
from expunge.unlearning.methods.alignment_calibration import AlignmentCalibration
from expunge.unlearning.methods.base import Batch, SetSizes, UnlearningMethod, own_objective
from expunge.unlearning.methods.contrastive_unlearning import ContrastiveUnlearning
from expunge.unlearning.methods.coun import CoUn
from expunge.unlearning.methods.fine_tune import FineTune
from expunge.unlearning.methods.gradient_ascent import GradientAscent
from expunge.unlearning.methods.gradient_penalty import GradientPenalty
from expunge.unlearning.methods.l1_sparsity import L1Sparsity
from expunge.unlearning.methods.neg_grad import NegGrad
from expunge.unlearning.methods.retrain import Retrain

__all__ = ["Batch", "SetSizes", "UnlearningMethod", "make_method", "own_objective"]

_CLASSES: Mapping[str, Callable[[Any], UnlearningMethod]] = {
    "alignment_calibration": AlignmentCalibration,
    "contrastive_unlearning": ContrastiveUnlearning,
    "coun": CoUn,
    "fine_tune": FineTune,
    "gradient_ascent": GradientAscent,
    "gradient_penalty": GradientPenalty,
    "l1_sparsity": L1Sparsity,
    "neg_grad": NegGrad,
    "retrain": Retrain,
}
"""Each takes the parameters that the catalog has for its id."""


def make_method(method: str, params: RunParams) -> UnlearningMethod:
    """The method with this id; raises UnknownMethod, or TypeError for another method's params."""
    if method not in _CLASSES:
        raise UnknownMethod(method)
    if not isinstance(params, METHODS[method].params):
        raise TypeError(f"{type(params).__name__} are not the parameters of {method!r}")
    return _CLASSES[method](params)
