"""What the test looks at: numbers of samples that depend on no label.

A look gives each sample of a pool, in which own and reference samples stand side by side, a number
that is large where the sample was treated as forgetting treats samples; its statistic is the mean
over a draw. It never knows which samples are whose: that is what makes the permutation test exact,
whatever the look.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.outputs import Floats, Outputs
from expunge.evidence.audit.report import LookName

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
            symmetric(_bordered(matrix, side.against(other), kept))
            for side, other, matrix, kept in sides
        )
        return Pool(before, after)


@dataclass(frozen=True)
class Look:
    """One number of every sample: (N,) from a pool, label-free."""

    name: LookName
    measure: Callable[[Pool], Array]


def symmetric(matrix: Floats) -> Floats:
    """(N, N) mean of the matrix and its transpose."""
    mean: Floats = (matrix + matrix.T) / np.float32(2)
    return mean


def forgetting_scores(pool: Pool) -> Array:
    """(N,) self-alignment before minus after, eq. 2."""
    scores: Array = np.diagonal(pool.before).astype(np.float64) - np.diagonal(pool.after)
    return scores


def profile_changes(pool: Pool) -> Array:
    """(N,) 1 - Pearson correlation of a sample's alignment with all others before and after.

    How much its neighbourhood was rearranged. Not moved by rotations of the outputs, so encoders
    that were trained apart can be compared.
    """
    before, after = (_profiles(matrix) for matrix in (pool.before, pool.after))
    lengths = np.sqrt((before**2).sum(axis=1) * (after**2).sum(axis=1))
    products = (before * after).sum(axis=1)
    # Equal profiles are exactly unchanged, whatever rounding makes of the quotient.
    same = (before == after).all(axis=1) | (lengths == 0)
    changes: Array = 1 - np.divide(products, lengths, out=np.ones(len(lengths)), where=~same)
    return changes


def neighbourhood_alignments(pool: Pool) -> Array:
    """(N,) mean change, after minus before, of a sample's alignment with all others of the pool.

    Alignment Calibration draws what it forgets towards everything. One mean a sample is far less
    noisy than the alignment of a few own samples with each other.
    """
    change = (pool.after - pool.before).astype(np.float64)
    np.fill_diagonal(change, 0)
    means: Array = change.sum(axis=1) / (len(change) - 1)
    return means


LOOKS = (
    Look("forgetting_score", forgetting_scores),
    Look("profile_change", profile_changes),
    Look("neighbourhood_alignment", neighbourhood_alignments),
)


def _profiles(matrix: Floats) -> Array:
    """(N, N) rows less their mean, the diagonal left out of both."""
    profiles = matrix.astype(np.float64)
    np.fill_diagonal(profiles, 0)
    profiles -= profiles.sum(axis=1, keepdims=True) / (len(profiles) - 1)
    np.fill_diagonal(profiles, 0)
    return profiles


def _bordered(own: Floats, cross: Floats, reference: Floats) -> Floats:
    return np.block([[own, cross], [cross.T, reference]])
