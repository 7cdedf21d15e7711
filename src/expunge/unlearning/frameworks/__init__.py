"""Frameworks: network and objective, one file each."""

import torch

from expunge.unlearning import catalog
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.frameworks.base import Contrast, Learner
from expunge.unlearning.frameworks.byol import BYOL
from expunge.unlearning.frameworks.clip import CLIP
from expunge.unlearning.frameworks.moco import MoCo
from expunge.unlearning.frameworks.simclr import SimCLR
from expunge.unlearning.frameworks.supervised import Supervised

__all__ = ["BYOL", "CLIP", "Contrast", "Learner", "MoCo", "SimCLR", "Supervised", "build"]


def build(spec: EncoderSpec, *, seed: int) -> Learner:
    """A learner with fresh weights that depend on `spec` and `seed` alone, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        match spec.objective:
            case catalog.SimCLR():
                return SimCLR(spec, spec.objective)
            case catalog.MoCo():
                return MoCo(spec, spec.objective)
            case catalog.BYOL():
                return BYOL(spec, spec.objective)
            case catalog.CLIP():
                return CLIP(spec, spec.objective)
            case catalog.Supervised():
                return Supervised(spec, spec.objective)
