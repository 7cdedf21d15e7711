"""What the test looks at: statistics of a draw of samples that depend on no label.

A look assigns numbers to samples, or to pairs of them, of a pool in which own and retained samples
stand side by side; its statistic is their mean over a draw. It never knows which samples are whose:
that is what makes the permutation test exact, whatever the look.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.outputs import Floats, Outputs
from expunge.evidence.audit.report import Alternative, StatisticName

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """(N, N) symmetric alignment matrices of own samples, then reference samples, at one level.

    Images against captions are in both halves the mean of both directions.
    """

    before: Floats
    after: Floats

    @staticmethod
    def of(own: Outputs, reference: Outputs) -> "Pool":
        """Computes own and cross alignments; the reference's matrices are kept with it."""
        sides = zip(
            (own.before, own.after),
            (reference.before, reference.after),
            own.matrices,
            reference.matrices,
            strict=True,
        )
        before, after = (
            _bordered(matrix, side.against(other), kept) for side, other, matrix, kept in sides
        )
        return Pool(before, after)

    @staticmethod
    def alone(reference: Outputs) -> "Pool":
        """Of the reference's samples only."""
        before, after = (_symmetric(matrix) for matrix in reference.matrices)
        return Pool(before, after)


@dataclass(frozen=True)
class Look:
    """One statistic.

    measure: a pool's (N,) numbers of samples, or, if `paired`, its (N, N) numbers of pairs;
    pooled: whether these depend on the rest of the pool, and so cannot be computed at home.
    """

    name: StatisticName
    alternative: Alternative
    paired: bool
    pooled: bool
    measure: Callable[[Pool], Array]


def _forgetting_scores(pool: Pool) -> Array:
    scores: Array = np.diagonal(pool.before).astype(np.float64) - np.diagonal(pool.after)
    return scores


def _changes(pool: Pool) -> Array:
    return (pool.after - pool.before).astype(np.float64)


def _profile_changes(pool: Pool) -> Array:
    """(N,) 1 - Pearson correlation of a sample's alignment with all others before and after.

    How much its neighbourhood was rearranged. Not moved by rotations of the outputs, so encoders
    that were trained apart can be compared.
    """
    before, after = (_profiles(matrix) for matrix in (pool.before, pool.after))
    lengths = np.sqrt((before**2).sum(axis=1) * (after**2).sum(axis=1))
    products = (before * after).sum(axis=1)
    correlation = np.divide(products, lengths, out=np.zeros(len(lengths)), where=lengths > 0)
    changes: Array = 1 - correlation
    return changes


def _profiles(matrix: Floats) -> Array:
    """(N, N) rows less their mean, the diagonal left out of both."""
    profiles = matrix.astype(np.float64)
    np.fill_diagonal(profiles, 0)
    profiles -= profiles.sum(axis=1, keepdims=True) / (len(profiles) - 1)
    np.fill_diagonal(profiles, 0)
    return profiles


LOOKS = (
    Look("forgetting_score", "greater", paired=False, pooled=False, measure=_forgetting_scores),
    Look("negative_alignment_change", "two-sided", paired=True, pooled=False, measure=_changes),
    Look("profile_change", "greater", paired=False, pooled=True, measure=_profile_changes),
)


def draw_means(look: Look, measured: Array, draws: NDArray[np.int64]) -> Array:
    """(B,) the look's statistic of each of (B, n) draws; pairs need n >= 2."""
    if not look.paired:
        means: Array = measured[draws].mean(axis=1)
        return means
    size = draws.shape[1]
    few = size**2 < 4 * len(measured)
    return _gathered(measured, draws) if few else _multiplied(measured, draws)


CHUNK_NUMBERS = 4_000_000
"""Gathered or multiplied at a time: 32 MB."""


def _gathered(matrix: Array, draws: NDArray[np.int64]) -> Array:
    """(B,) means of a symmetric matrix over all pairs of each draw, looked up one by one."""
    first, second = np.triu_indices(draws.shape[1], 1)
    chunk = max(1, CHUNK_NUMBERS // len(first))
    parts = []
    for start in range(0, len(draws), chunk):
        part = draws[start : start + chunk]
        places = part[:, first] * len(matrix) + part[:, second]
        parts.append(matrix.take(places).mean(axis=1))
    return np.concatenate(parts)


def _multiplied(matrix: Array, draws: NDArray[np.int64]) -> Array:
    """The same with indicators as a matrix product: cheaper for large draws."""
    size = draws.shape[1]
    bare = matrix.astype(np.float32)
    np.fill_diagonal(bare, 0)
    chunk = max(1, CHUNK_NUMBERS // len(matrix))
    parts = []
    for start in range(0, len(draws), chunk):
        part = draws[start : start + chunk]
        drawn = np.zeros((len(part), len(matrix)), np.float32)
        np.put_along_axis(drawn, part, 1, axis=1)
        parts.append(((drawn @ bare) * drawn).sum(axis=1, dtype=np.float64))
    means: Array = np.concatenate(parts) / (size * (size - 1))
    return means


def _bordered(own: Floats, cross: Floats, reference: Floats) -> Floats:
    return _symmetric(np.block([[own, cross], [cross.T, reference]]))


def _symmetric(matrix: Floats) -> Floats:
    symmetric: Floats = (matrix + matrix.T) / np.float32(2)
    return symmetric
