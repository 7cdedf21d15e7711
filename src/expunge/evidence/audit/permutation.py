"""An exact permutation test over several looks at once.

Under its hypothesis the own samples are as good as drawn from own and reference samples together;
so the p-value is valid at any size. Never assumes a distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.looks import LOOKS, Look, Pool
from expunge.evidence.audit.outputs import Level

Array = NDArray[np.float64]
Index = NDArray[np.int64]

PERMUTATIONS = 4_999
"""With the own samples themselves 5,000: the smallest p-value is 0.0002."""
ROUNDING = 1e-9
"""Spread below which a statistic is the same in all draws: outputs are of unit length, float32."""
CHUNK_DRAWS = 500
"""Shuffled at a time: 6 MB at 1,536 samples."""
Key = tuple[Level, Look]


@dataclass(frozen=True)
class Outcome:
    """K looks at one observed draw and B others; row 0 is the observed one.

    values: (B + 1, K) statistics; z: (B + 1, K) studentised by their own mean and standard
    deviation over all rows.
    """

    looks: Sequence[Key]
    values: Array
    z: Array

    @property
    def p(self) -> float:
        """Of the whole test: share of draws at least as conspicuous, the observed one among them."""
        return share_as_large(conspicuous(self.z))

    @property
    def used(self) -> list[int]:
        """Which looks are at outputs that are used: all but the projector's, which training throws away."""
        return [k for k, (level, _) in enumerate(self.looks) if level != "projector"]

    @property
    def p_used(self) -> float:
        """As `p`, of the looks at outputs that are used."""
        return share_as_large(conspicuous(self.z[:, self.used]))

    def p_of(self, look: int) -> float:
        """Of one look alone; not adjusted for there being others."""
        return share_as_large(self.z[:, look])


def conspicuous(z: Array) -> Array:
    """(B,) how far (B, K) looks together lie above their means: sum of max(z, 0)^2.

    The same function for every draw, so that its permutation test is exact. Against forgetting by
    Alignment Calibration, which moves several looks a little each, it found more than their largest
    (87 % against 73 % of honest removals at 8 samples).
    """
    together: Array = (np.maximum(z, 0) ** 2).sum(axis=1)
    return together


def permute(pools: Mapping[Level, Pool], draws: Index, looks: Sequence[Look] = LOOKS) -> Outcome:
    """All looks at all levels over (B + 1, n) draws, row 0 the own samples."""
    keys: list[Key] = [(level, look) for level in pools for look in looks]
    values = [look.measure(pools[level])[draws].mean(axis=1) for level, look in keys]
    stacked = np.stack(values, axis=1)
    return Outcome(keys, stacked, studentised(stacked))


def share_as_large(values: Array) -> float:
    """Share of (B + 1,) values that are at least the first."""
    return float(np.mean(values >= values[0]))


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


def studentised(values: Array) -> Array:
    """(B, K) by each column's mean and standard deviation.

    Rounded, so that draws of the same samples in another order count as equally conspicuous.
    """
    centred = values - values.mean(axis=0)
    spread = values.std(axis=0)
    z = np.divide(centred, spread, out=np.zeros_like(values), where=spread > ROUNDING)
    rounded: Array = z.round(9)
    return rounded
