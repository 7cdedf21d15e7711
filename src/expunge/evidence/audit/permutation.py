"""An exact permutation test over several looks at once (Westfall and Young's single-step max-T).

Under its hypothesis the own samples are as good as drawn from own and reference samples together;
so the p-value is valid at any size. Never assumes a distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.looks import LOOKS, Look, Pool, draw_means
from expunge.evidence.audit.outputs import Level

Array = NDArray[np.float64]
Index = NDArray[np.int64]

PERMUTATIONS = 4_999
"""With the own samples themselves 5,000: the smallest p-value is 0.0002."""
CHUNK_DRAWS = 500
"""Shuffled at a time: 6 MB at 1,536 samples."""
Key = tuple[Level, Look]


@dataclass(frozen=True)
class Outcome:
    """K looks at one observed draw and B others; row 0 is the observed one.

    values: (B + 1, K) statistics; z: (B + 1, K) studentised by their own mean and standard
    deviation over all rows, larger is more extreme.
    """

    looks: Sequence[Key]
    values: Array
    z: Array

    @property
    def most_extreme(self) -> Array:
        """(B + 1,) the largest z of each draw over all looks."""
        largest: Array = self.z.max(axis=1)
        return largest

    @property
    def p(self) -> float:
        """Of the whole test."""
        return p_of_largest(self.most_extreme)

    def adjusted_p(self, look: int) -> float:
        """The same for one look, adjusted for the others being looked at too."""
        return float(np.mean(self.most_extreme >= self.z[0, look]))


def permute(pools: Mapping[Level, Pool], draws: Index, looks: Sequence[Look] = LOOKS) -> Outcome:
    """All looks at all levels over (B + 1, n) draws, row 0 the own samples."""
    paired_too = draws.shape[1] > 1
    keys: list[Key] = [
        (level, look) for level in pools for look in looks if paired_too or not look.paired
    ]
    values = np.stack(
        [draw_means(look, look.measure(pools[level]), draws) for level, look in keys], axis=1
    )
    two_sided = [look.alternative == "two-sided" for _, look in keys]
    return Outcome(keys, values, studentised(values, two_sided))


def p_of_largest(most_extreme: Array) -> float:
    """Share of draws, the observed one in row 0 among them, at least as extreme as that one."""
    return float(np.mean(most_extreme >= most_extreme[0]))


def plain_draws(
    own: int, reference: int, rng: np.random.Generator, count: int = PERMUTATIONS
) -> Index:
    """(B + 1, n): the own samples, then uniform draws of as many without replacement from all.

    One own sample has as many draws as there are samples: all of them are taken, once each.
    """
    total = own + reference
    if own == 1:
        return np.arange(total, dtype=np.int64)[:, None]
    return np.vstack([np.arange(own), distinct(own, total, rng, count)])


def distinct(size: int, total: int, rng: np.random.Generator, count: int) -> Index:
    """(count, size) draws without replacement of `size` from `total`."""
    if size**2 > 2 * total:
        everything = np.broadcast_to(np.arange(total, dtype=np.int64), (CHUNK_DRAWS, total))
        starts = range(0, count, CHUNK_DRAWS)
        shuffled = [rng.permuted(everything, axis=1)[:, :size] for _ in starts]
        return np.concatenate(shuffled)[:count]
    draws = rng.integers(total, size=(count, size))
    # Drawing again what holds a sample twice leaves every set equally likely.
    while (again := _repeating(draws)).any():
        draws[again] = rng.integers(total, size=(int(again.sum()), size))
    return draws


def _repeating(draws: Index) -> NDArray[np.bool_]:
    ordered = np.sort(draws, axis=1)
    repeating: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return repeating


def studentised(values: Array, two_sided: Sequence[bool]) -> Array:
    """(B, K) by each column's mean and standard deviation; its size alone where two-sided.

    Rounded, so that draws of the same samples in another order count as equally extreme.
    """
    centred = values - values.mean(axis=0)
    spread = values.std(axis=0)
    z = np.divide(centred, spread, out=np.zeros_like(values), where=spread > 0)
    rounded: Array = np.where(two_sided, np.abs(z), z).round(9)
    return rounded
