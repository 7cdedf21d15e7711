"""Alignment matrices, forgetting scores and negative alignment from encoder outputs.

Pure arithmetic on arrays; never runs an encoder.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MIN_VIEWS = 2


def alignment_matrix(outputs: Array) -> Array:
    """(N, N) alignment matrix of (V, N, D) L2-normalised outputs of V >= 2 views.

    AM[i, j] is the mean of cos(f_v(i), f_w(j)) over ordered pairs of views v != w, from
    sum over v != w = (sum_v f_v)(sum_w f_w)^T - sum_v f_v f_v^T. With V = 2 it is the mean of the
    paper's two-view matrix and its transpose.
    """
    views = len(outputs)
    if views < MIN_VIEWS:
        raise ValueError("an alignment matrix needs at least two views")
    total = outputs.sum(axis=0)
    flat = outputs.transpose(1, 0, 2).reshape(outputs.shape[1], -1)
    matrix: Array = (total @ total.T - flat @ flat.T) / (views * (views - 1))
    return matrix


def self_alignment(view_sum: Array, views: int) -> Array:
    """(N,) diagonal of the alignment matrix from the (N, D) sum of each sample's normalised views.

    |sum_v f_v|^2 holds each of the `views` cosines of a view with itself, all 1, and every pair
    twice. Before minus after this is the forgetting score of each sample (eq. 2).
    """
    if views < MIN_VIEWS:
        raise ValueError("alignment needs at least two views")
    alignment: Array = ((view_sum**2).sum(axis=1) - views) / (views * (views - 1))
    return alignment


def off_diagonal(matrix: Array) -> Array:
    """(N * (N - 1),) entries between different samples: the negative alignment."""
    entries: Array = matrix[~np.eye(len(matrix), dtype=bool)]
    return entries
