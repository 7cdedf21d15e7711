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

from expunge.evidence.audit.moments import Moments
from expunge.evidence.audit.outputs import Floats, Outputs, symmetric
from expunge.evidence.audit.report import LookName

Array = NDArray[np.float64]

CONSTANT = 1e-12
"""Share of its mean square that a profile's variance must exceed: sums of squares are exact to 1e-16."""


@dataclass(frozen=True)
class Pool:
    """Own samples, then reference samples, N together, at one level.

    scores: (N,) forgetting scores; others: of each sample's alignments with all others of the pool.
    Images against captions count with the mean of both directions.
    """

    scores: Array
    others: Moments

    @staticmethod
    def of(own: Outputs, reference: Outputs) -> "Pool":
        """Computes own and cross alignments; what the reference's are is kept with it."""
        before, after = (
            side.against(other)
            for side, other in ((own.before, reference.before), (own.after, reference.after))
        )
        mine = own.among_themselves + Moments.between(before, after)
        theirs = reference.among_themselves + Moments.between(before.T, after.T)
        return Pool(
            np.concatenate([own.paired_scores, reference.paired_scores]), mine.beside(theirs)
        )

    @staticmethod
    def of_matrices(before: Floats, after: Floats) -> "Pool":
        """From (N, N) alignment matrices."""
        sides = symmetric(before), symmetric(after)
        scores = np.diagonal(before).astype(np.float64) - np.diagonal(after)
        return Pool(scores, Moments.within(*sides))


@dataclass(frozen=True)
class Look:
    """One number of every sample: (N,) from a pool, label-free."""

    name: LookName
    measure: Callable[[Pool], Array]


def forgetting_scores(pool: Pool) -> Array:
    """(N,) self-alignment before minus after, eq. 2."""
    return pool.scores


def profile_changes(pool: Pool) -> Array:
    """(N,) 1 - Pearson correlation of a sample's alignment with all others before and after.

    How much its neighbourhood was rearranged. Not moved by rotations of the outputs, so encoders
    that were trained apart can be compared.
    """
    before, after, before_squares, after_squares, products = pool.others.sums.T
    k = pool.others.others
    variances = np.stack([before_squares - before**2 / k, after_squares - after**2 / k])
    covariance = products - before * after / k
    constant = (variances <= CONSTANT * np.stack([before_squares, after_squares])).any(axis=0)
    # Equal profiles are exactly unchanged, whatever rounding makes of the quotient.
    same = ~pool.others.changed | constant
    lengths = np.sqrt(np.where(same, 1, variances).prod(axis=0))
    changes: Array = 1 - np.where(same, 1, covariance / lengths)
    return changes


def neighbourhood_alignments(pool: Pool) -> Array:
    """(N,) mean change, after minus before, of a sample's alignment with all others of the pool.

    Alignment Calibration draws what it forgets towards everything. One mean a sample is far less
    noisy than the alignment of a few own samples with each other.
    """
    means: Array = (pool.others.sums[:, 1] - pool.others.sums[:, 0]) / pool.others.others
    return means


LOOKS = (
    Look("forgetting_score", forgetting_scores),
    Look("profile_change", profile_changes),
    Look("neighbourhood_alignment", neighbourhood_alignments),
)
