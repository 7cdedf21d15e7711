"""Kinds of images, so that own samples are held against retained ones of their own kind.

An owner whose images are all dogs cannot be exchanged for any image that the model kept, only for
its dogs. Groups own and retained samples together by the encoder before, and never knows whose is
whose: the permutation test within groups is as exact as that among all.
"""

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.permutation import PERMUTATIONS, distinct

Floats = NDArray[np.float32]
Index = NDArray[np.int64]

STRATUM = 24
"""Samples of a stratum on average. In simulations of owners with images of one kind only, drifting
with their kind, 26 found 1-3 % of untouched samples at alpha = 1 %, 52 found 1-9 %, a single stratum
up to 70 %."""
STRATUM_OF_ONE = 256
"""For a single own sample, whose p-value cannot be smaller than one in its stratum's samples."""
MIN_ALIKE = 8
"""Reference samples of a stratum below which it takes no part: fewer would be told apart."""
RETAINED_A_SAMPLE = 4
"""Retained samples for each own one that is tested. With fewer, own samples of one kind are among themselves,
or held against another kind: in simulations of five kinds that drift, nobody forgotten, 64 of one kind against
64 others, 300 against 128 and 256 against 512 were found in 27, 5 and 7 % of cases with one, in 15, 5 and 5 % with
four."""
ROUNDS = 10


def tested(own: int, most: int, rng: np.random.Generator) -> Index:
    """(n,) ascending: the own samples that a test is about: all, or a draw of so many, but 8 at least.

    With more than others, most strata would hold too few of these to compare with.
    """
    most = max(MIN_ALIKE, most)
    return np.sort(rng.permutation(own)[:most]) if own > most else np.arange(own)


def strata(own: Floats, reference: Floats, rng: np.random.Generator) -> Index:
    """(n + m,) stratum of own, then reference samples: k-means on (n, D) and (m, D) mean outputs of one encoder.

    Starts from random samples. Clusters of less than half the average size are dissolved, their
    samples go to the nearest that remains.
    """
    samples = np.concatenate([own, reference])
    size = STRATUM_OF_ONE if len(own) == 1 else STRATUM
    centres = samples[rng.permutation(len(samples))[: max(1, len(samples) // size)]]
    for _ in range(ROUNDS):
        centres = _centres(samples, _nearest(samples, centres), centres)
    counts = np.bincount(_nearest(samples, centres), minlength=len(centres))
    lasting = centres[counts >= size // 2]
    return _nearest(samples, lasting) if len(lasting) else np.zeros(len(samples), np.int64)


def comparable(stratum: Index, own: int) -> Index:
    """(n,) ascending: which own samples have at least 8 reference samples in their stratum.

    stratum: (N,) of all samples, the own ones first. Own near-copies of an image are a stratum of
    their own: what its few other members do is what one of them does. A draw within strata leaves
    the numbers in each as they are, so the test of those that remain is as exact.
    """
    others = np.bincount(stratum[own:], minlength=int(stratum.max()) + 1)
    return np.flatnonzero(others[stratum[:own]] >= MIN_ALIKE)


def matched_draws(
    stratum: Index, own: int, rng: np.random.Generator, count: int = PERMUTATIONS
) -> Index:
    """(B + 1, n): the `comparable` own samples, then draws with as many of each stratum as they have.

    stratum: (N,) of all samples, the own ones first. One own sample has as many draws as there are
    samples in its stratum: all of them are taken, once each. (1, 0) where none is comparable.
    """
    mine = comparable(stratum, own)
    if not len(mine):
        return mine[None, :]
    if len(mine) == 1:
        members = np.flatnonzero(stratum == stratum[mine[0]])
        return np.concatenate([mine, members[members != mine[0]]])[:, None]
    parts = []
    for each in np.unique(stratum[mine]):
        members = np.flatnonzero(stratum == each)
        size = int((stratum[mine] == each).sum())
        parts.append(members[distinct(size, len(members), rng, count)])
    return np.vstack([mine, np.hstack(parts)])


def _nearest(samples: Floats, centres: Floats) -> Index:
    """(N,) number of the centre with the smallest squared distance."""
    distances = (centres**2).sum(axis=1) - 2 * samples @ centres.T
    nearest: Index = distances.argmin(axis=1)
    return nearest


def _centres(samples: Floats, nearest: Index, last: Floats) -> Floats:
    """(K, D) means of each centre's samples; where it has none, the last one."""
    counts = np.bincount(nearest, minlength=len(last))[:, None]
    members = (nearest == np.arange(len(last))[:, None]).astype(np.float32)
    return np.where(counts > 0, members @ samples / np.maximum(counts, 1), last).astype(np.float32)
