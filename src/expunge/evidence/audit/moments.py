"""Sums over a sample's alignments with others, before and after: all that the test's looks need of them.

Sums of two groups of others add up, so those among reference samples are computed once. Draws no
conclusions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reals = NDArray[np.floating]


@dataclass(frozen=True)
class Moments:
    """Of N samples over their alignments with the same number of others each.

    sums: (N, 5) of before, after, before^2, after^2, and before times after; changed: (N,) whether
    any of the alignments changed.
    """

    sums: Array
    changed: NDArray[np.bool_]
    others: int

    @staticmethod
    def between(before: Reals, after: Reals) -> "Moments":
        """Of each row of (N, M) alignments with others."""
        b, a = before.astype(np.float64), after.astype(np.float64)
        products = [np.einsum("ij,ij->i", *pair) for pair in ((b, b), (a, a), (b, a))]
        sums = np.stack([b.sum(axis=1), a.sum(axis=1), *products], axis=1)
        return Moments(sums, (before != after).any(axis=1), before.shape[1])

    @staticmethod
    def within(before: Reals, after: Reals) -> "Moments":
        """Of each sample of (N, N) alignments with all others of them."""
        b, a = before.copy(), after.copy()
        for matrix in (b, a):
            np.fill_diagonal(matrix, 0)
        whole = Moments.between(b, a)
        return Moments(whole.sums, whole.changed, whole.others - 1)

    def __add__(self, other: "Moments") -> "Moments":
        """Of the same samples, over both groups of others."""
        return Moments(
            self.sums + other.sums, self.changed | other.changed, self.others + other.others
        )

    def beside(self, other: "Moments") -> "Moments":
        """Of these samples, then others, who have as many others."""
        sums = np.concatenate([self.sums, other.sums])
        return Moments(sums, np.concatenate([self.changed, other.changed]), self.others)
