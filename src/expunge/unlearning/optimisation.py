"""The optimiser of a run and its learning rate. Never steps."""

import math

import torch

from expunge.unlearning.catalog import PretrainParams, RunParams
from expunge.unlearning.frameworks import Learner

ADAMW_SECOND_BETA = 0.98
ADAMW_EPSILON = 1e-6
"""Both as in the CLIP paper, table 19."""
MATRIX_DIMS = 2


def make_optimiser(learner: Learner, params: RunParams) -> torch.optim.Optimizer:
    """SGD, or AdamW with weight decay on matrices and filters only, as CLIP has it."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    if params.optimiser == "sgd":
        return torch.optim.SGD(
            trained,
            lr=params.learning_rate,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
            fused=True,
        )
    decayed = [p for p in trained if p.ndim >= MATRIX_DIMS]
    spared = [p for p in trained if p.ndim < MATRIX_DIMS]
    groups = [
        {"params": decayed, "weight_decay": params.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=params.learning_rate,
        betas=(params.momentum, ADAMW_SECOND_BETA),
        eps=ADAMW_EPSILON,
        fused=True,
    )


def learning_rate(params: RunParams, epoch: int) -> float:
    """Of the 0-based `epoch`: constant, but for pre-training's warm-up and cosine.

    Warm-up: (epoch + 1) / (warmup_epochs + 1) of the highest; then a cosine to zero over the rest.
    """
    rate = params.learning_rate
    if not isinstance(params, PretrainParams):
        return rate
    warmup = min(params.warmup_epochs, params.epochs - 1)
    if epoch < warmup:
        return rate * (epoch + 1) / (warmup + 1)
    if params.schedule == "constant":
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (params.epochs - warmup)))
