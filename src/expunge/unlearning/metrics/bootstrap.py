"""Bootstrap over samples, for means of samples and of pairs of samples. Pure arithmetic."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def resampling_weights(samples: int, draws: int, rng: np.random.Generator) -> Array:
    """(draws, samples): how often each sample is in each resample of the same size."""
    counts = rng.multinomial(samples, np.full(samples, 1 / samples), size=draws)
    return counts.astype(np.float64)


def resampled_means(values: Array, weights: Array) -> Array:
    """(draws,) means of (N,) values under (draws, N) resampling weights."""
    means: Array = weights @ values / weights.sum(axis=1)
    return means


def resampled_pair_means(matrix: Array, weights: Array) -> Array:
    """(draws,) means of the off-diagonal entries of (N, N) when samples, not pairs, are resampled.

    A pair weighs the product of its samples' weights; pairs of a sample with its own copy are left
    out, since the diagonal is another quantity. Resamples of one sample alone give NaN.
    """
    bare = matrix.copy()
    np.fill_diagonal(bare, 0)
    sums = ((weights @ bare) * weights).sum(axis=1)
    pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
    means: Array = np.divide(sums, pairs, out=np.full(len(sums), np.nan), where=pairs > 0)
    return means


def percentile_interval(draws: Array, confidence: float) -> tuple[float, float]:
    """The central share `confidence` of the draws."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)
