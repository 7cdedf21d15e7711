"""What the geometry of encoder features tells: nearest neighbours, alignment, uniformity.

Works on features; never runs an encoder and never trains a classifier.
"""

import numpy as np
import torch
from torch import Tensor

NEIGHBOURS = 20
TEMPERATURE = 0.1
"""Neighbours vote with exp(cosine / T), as in Wu et al. 2018 (arXiv 1805.01978)."""
UNIFORMITY_SCALE = 2.0
MAX_PAIR_SAMPLES = 2048
"""Sets with more are represented by a seeded draw of so many where pairs count."""
CHUNK = 1024
"""Queries compared with the whole bank at a time: 160 MB of cosines for 40,000 images."""
MIN_PAIR = 2


@torch.no_grad()
def neighbour_predictions(
    queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int = NEIGHBOURS
) -> Tensor:
    """(Q,) int64 classes by a weighted vote of the k nearest of the bank.

    queries: (Q, F), bank: (N, F), both float32 and L2-normalised; labels: (N,) int64 in
    [0, classes). With fewer than k in the bank all of them vote; the lower class wins ties.
    """
    k = min(k, len(bank))
    predictions = []
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        cosines, nearest = (chunk @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk), classes, device=chunk.device)
        votes.scatter_add_(1, labels[nearest], (cosines / TEMPERATURE).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def alignment_losses(same: np.ndarray) -> np.ndarray:
    """(N,) mean squared distances between views of a sample, from their mean cosines.

    Alignment of Wang & Isola 2020 (arXiv 2005.10242, alpha = 2): |a - b|^2 = 2 - 2 cos(a, b) for
    features of length 1; the mean over samples is their l_align.
    """
    losses: np.ndarray = 2 - 2 * same
    return losses


@torch.no_grad()
def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 |a - b|^2) over pairs of different samples.

    features: (N, F) L2-normalised, N >= 2. Uniformity of Wang & Isola 2020, t = 2: 0 when all
    features are one, about -4 when they spread over the whole sphere in many dimensions.
    Raises ValueError for a single sample.
    """
    if len(features) < MIN_PAIR:
        raise ValueError("uniformity needs at least two samples")
    distances = torch.nn.functional.pdist(features.double())
    pairs = torch.tensor(float(len(distances)), dtype=torch.float64, device=features.device)
    logarithm = (-UNIFORMITY_SCALE * distances.square()).logsumexp(0) - pairs.log()
    return float(logarithm)
