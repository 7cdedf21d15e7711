"""Alignment matrices, forgetting scores and negative alignment from encoder outputs.

Pure arithmetic on arrays; never runs an encoder.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reals = NDArray[np.floating]
MIN_VIEWS = 2


def alignment_matrix(outputs: Reals) -> Reals:
    """(N, N) alignment matrix of (V, N, D) L2-normalised outputs of V >= 2 views.

    AM[i, j] is the mean of cos(f_v(i), f_w(j)) over ordered pairs of views v != w. With V = 2 it is
    the mean of the paper's two-view matrix and its transpose.
    """
    return cross_alignment(outputs, outputs)


def cross_alignment(first: Reals, second: Reals) -> Reals:
    """(N, M) mean cosine between different views of (V, N, D) and (V, M, D) outputs.

    Each view of a second sample is held against the sum of the other views of a first one: one
    matrix product over V * D numbers. Raises ValueError for fewer than two views.
    """
    views = _at_least_two(len(first))
    others = by_sample(first.sum(axis=0) - first)
    matrix: Reals = others @ by_sample(second).T
    matrix /= views * (views - 1)
    return matrix


def by_sample(outputs: Reals) -> Reals:
    """(N, V * D) from (V, N, D); no copy where a sample's views lie together in memory."""
    views, samples, dimensions = outputs.shape
    flat: Reals = outputs.transpose(1, 0, 2).reshape(samples, views * dimensions)
    return flat


def caption_alignment(images: Reals, captions: Reals) -> Reals:
    """(N, M) mean over views of the cosine of (V, N, D) images with (M, D) captions."""
    matrix: Reals = images.mean(axis=0) @ captions.T
    return matrix


def view_cosines(outputs: Reals) -> Array:
    """(N, C) float64 cosines of each sample's views v < w, C = V (V - 1) / 2; (V, N, D) in.

    Their mean over C is the diagonal of the alignment matrix. Before minus after this is the
    forgetting score of each sample (eq. 2). Raises ValueError for fewer than two views.
    """
    first, second = np.triu_indices(_at_least_two(len(outputs)), 1)
    samples = outputs.transpose(1, 0, 2).astype(np.float64)
    cosines: Array = (samples @ samples.transpose(0, 2, 1))[:, first, second]
    return cosines


def caption_cosines(images: Reals, captions: Reals) -> Array:
    """(N, V) float64 cosines of each of (V, N, D) image views with its own of (N, D) captions."""
    cosines: Array = np.einsum("vnd,nd->nv", images, captions, dtype=np.float64)
    return cosines


def self_alignment(view_sum: Array, views: int) -> Array:
    """(N,) diagonal of the alignment matrix from the (N, D) sum of each sample's normalised views.

    |sum_v f_v|^2 holds each of the `views` cosines of a view with itself, all 1, and every pair
    twice. Raises ValueError for fewer than two views.
    """
    _at_least_two(views)
    alignment: Array = ((view_sum**2).sum(axis=1) - views) / (views * (views - 1))
    return alignment


def off_diagonal(matrix: Reals) -> Reals:
    """(N * (N - 1),) entries between different samples: the negative alignment."""
    entries: Reals = matrix[~np.eye(len(matrix), dtype=bool)]
    return entries


def _at_least_two(views: int) -> int:
    if views < MIN_VIEWS:
        raise ValueError("an alignment matrix needs at least two views")
    return views
