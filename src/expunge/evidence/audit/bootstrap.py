"""Bootstrap over samples and views, for means of samples and of pairs of samples.

Pure arithmetic. Never resamples pairs: pairs share samples and are not independent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student  # type: ignore[import-untyped]

from expunge.evidence.audit.alignment import by_sample
from expunge.evidence.audit.outputs import Outputs, Side

Array = NDArray[np.float64]

DRAWS = 500
"""Resamples. Only their standard deviation is used, which so many give within 3 %."""
MIN_PAIRED_SAMPLES = 4
"""Below, resamples hold too few different pairs to say how much a mean of pairs varies."""


@dataclass(frozen=True)
class Resamples:
    """How often each sample, and each view number, is in each resample of the same size.

    samples: (draws, N) for means of samples; paired: (draws, P) for means of pairs; views:
    (draws, V), the same view numbers for all samples: a view number's jitter order is shared.
    """

    samples: Array
    paired: Array
    views: Array

    @staticmethod
    def draw(outputs: Outputs, rng: np.random.Generator, draws: int = DRAWS) -> "Resamples":
        """Independent draws of samples and of views, with replacement."""
        samples = resampling_weights(len(outputs), draws, rng)
        views = resampling_weights(outputs.views, draws, rng)
        if len(outputs.chosen) == len(outputs):
            return Resamples(samples, samples, views)
        return Resamples(samples, resampling_weights(len(outputs.chosen), draws, rng), views)

    def self_alignment(self, side: Side) -> Array:
        """(draws,) mean self-alignment; NaN where a resample holds one view only."""
        kept = self._kept(side)
        sums = ((self.samples @ side.cosines) * kept).sum(axis=1)
        return _ratio(sums, self.samples.sum(axis=1) * kept.sum(axis=1))

    def negative_alignment(self, side: Side, chosen: NDArray[np.int64]) -> Array:
        """(draws,) mean alignment of different samples under different views (or with captions).

        A pair weighs the product of its samples' and its views' weights; pairs of a sample, or a
        view, with its own copy are left out: their cosine is another quantity.
        """
        kept, weights = self._kept(side), self.paired
        means = _weighted_sums(weights, side.views)
        if side.captions is None:
            first, second = np.triu_indices(len(side.views), 1)
            all_pairs = (means @ means.transpose(0, 2, 1))[:, first, second]
        else:
            texts = weights.astype(np.float32) @ side.captions
            all_pairs = (means @ texts[:, :, None])[:, :, 0]
        own = weights**2 @ side.cosines[chosen]
        pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
        return _ratio(((all_pairs - own) * kept).sum(axis=1), pairs * kept.sum(axis=1))

    def _kept(self, side: Side) -> Array:
        """(draws, C) weight of each of the side's cosines: of its pair of views, or of its view."""
        if side.captions is not None:
            return self.views
        first, second = np.triu_indices(len(side.views), 1)
        kept: Array = self.views[:, first] * self.views[:, second]
        return kept


def resampling_weights(samples: int, draws: int, rng: np.random.Generator) -> Array:
    """(draws, samples): how often each sample is in each resample of the same size."""
    counts = rng.multinomial(samples, np.full(samples, 1 / samples), size=draws)
    return counts.astype(np.float64)


def standard_error(draws: Array, samples: int) -> float:
    """Of the mean of n samples: the draws' standard deviation, freed of its bias (n - 1) / n."""
    return float(np.nanstd(draws)) * float(np.sqrt(samples / (samples - 1)))


def interval(mean: float, error: float, samples: int, confidence: float) -> list[float]:
    """Mean +- Student's quantile with n - 1 degrees of freedom times the standard error.

    At 8 samples bootstrap percentiles would cover 87 % where this covers 95 %.
    """
    reach = float(student.ppf((1 + confidence) / 2, samples - 1)) * error
    return [mean - reach, mean + reach]


def _weighted_sums(weights: Array, views: NDArray[np.float32]) -> NDArray[np.float32]:
    """(draws, V, D) sums over samples of (V, P, D) outputs under (draws, P) weights."""
    sums: NDArray[np.float32] = weights.astype(np.float32) @ by_sample(views).astype(np.float32)
    return sums.reshape(len(weights), len(views), -1)


def _ratio(sums: Array, counts: Array) -> Array:
    ratio: Array = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return ratio
