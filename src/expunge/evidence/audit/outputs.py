"""What two encoders say about the same views of the same samples: all that an audit starts from.

Holds arrays and their alignments. Never runs an encoder, and never draws conclusions.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.alignment import (
    alignment_matrix,
    by_sample,
    caption_alignment,
    caption_cosines,
    cross_alignment,
    view_cosines,
)
from expunge.evidence.audit.moments import Moments

Level = Literal["encoder", "projector", "image_text"]
"""Encoder outputs, projector outputs, or CLIP's images against their captions."""
Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Index = NDArray[np.int64]

MAX_PAIR_SAMPLES = 1024
"""Larger sets are represented by a seeded draw of so many where pairs count: the outputs of one
encoder then stay within 20 MB (512 dimensions, 10 views), the matrices of a level within 20 MB."""


def pair_samples(samples: int, seed: int) -> Index:
    """(P,) ascending: which of `samples` stand for all where pairs count, at most 1,024."""
    order = np.random.default_rng([seed, samples]).permutation(samples)
    return np.sort(order[:MAX_PAIR_SAMPLES]).astype(np.int64)


@dataclass(frozen=True)
class Side:
    """One encoder's outputs on a set of N samples, at one level.

    views: (V, P, D) float32 L2-normalised outputs of the P samples that stand for all in pairs;
    cosines: (N, C) float64, of every sample: its pairs of views (`view_cosines`), or its views with
    its own caption (`caption_cosines`); captions: (P, D) float32, mean of each sample's
    L2-normalised caption outputs, where images are held against captions.
    """

    views: Floats
    cosines: Array
    captions: Floats | None = None

    def __post_init__(self) -> None:
        views, samples, dimensions = self.views.shape
        together = by_sample(self.views).reshape(samples, views, dimensions)
        object.__setattr__(self, "views", together.transpose(1, 0, 2))

    @cached_property
    def aligned(self) -> Array:
        """(N,) self-alignment: the alignment matrix's diagonal, for every sample."""
        aligned: Array = self.cosines.mean(axis=1)
        return aligned

    @cached_property
    def centres(self) -> Floats:
        """(P, D) each sample's mean output over views, L2-normalised."""
        means = self.views.mean(axis=0)
        centres: Floats = means / np.linalg.norm(means, axis=1, keepdims=True)
        return centres

    def matrix(self, chosen: Index) -> Floats:
        """(P, P) alignment matrix; images in rows, captions (if any) in columns."""
        matrix = (
            alignment_matrix(self.views)
            if self.captions is None
            else caption_alignment(self.views, self.captions)
        )
        # The same numbers as the per-sample scores, to the last bit.
        np.fill_diagonal(matrix, self.aligned[chosen])
        return matrix.astype(np.float32)

    def against(self, other: "Side") -> Floats:
        """(P, Q) alignment with other samples; with captions the mean of both directions."""
        if self.captions is None or other.captions is None:
            return cross_alignment(self.views, other.views).astype(np.float32)
        there = caption_alignment(self.views, other.captions)
        back = caption_alignment(other.views, self.captions).T
        return ((there + back) / 2).astype(np.float32)


@dataclass(frozen=True)
class Outputs:
    """Both encoders' outputs on the same views of the same samples, at one level.

    chosen: (P,) which of the N samples the sides' `views` are of, see `pair_samples`.
    """

    before: Side
    after: Side
    chosen: Index

    @staticmethod
    def of(
        before: Floats,
        after: Floats,
        *,
        seed: int = 0,
        captions: tuple[Floats, Floats] | None = None,
    ) -> "Outputs":
        """From (V, N, D) L2-normalised outputs before and after, held whole.

        captions: (N, D) before and after, for the level `image_text`. Raises ValueError where
        shapes differ or a set is empty.
        """
        shapes = {before.shape, after.shape}
        if len(shapes) > 1 or before.ndim != 3 or before.shape[1] == 0:  # noqa: PLR2004
            raise ValueError(f"outputs must be two equal (V, N, D), not {sorted(shapes)}")
        chosen = pair_samples(before.shape[1], seed)
        texts = captions or (None, None)
        sides = [_side(*pair, chosen) for pair in zip((before, after), texts, strict=True)]
        return Outputs(sides[0], sides[1], chosen)

    def __len__(self) -> int:
        return len(self.before.cosines)

    @property
    def views(self) -> int:
        """Views a sample."""
        return len(self.before.views)

    @property
    def scores(self) -> Array:
        """(N,) forgetting scores, eq. 2: positive where views have become less alike."""
        scores: Array = self.before.aligned - self.after.aligned
        return scores

    @cached_property
    def matrices(self) -> tuple[Floats, Floats]:
        """(P, P) alignment matrices before and after."""
        return self.before.matrix(self.chosen), self.after.matrix(self.chosen)

    @cached_property
    def paired_scores(self) -> Array:
        """(P,) forgetting scores of the samples that stand for all in pairs, rounded as the matrices are."""
        before, after = (np.diagonal(matrix).astype(np.float64) for matrix in self.matrices)
        scores: Array = before - after
        return scores

    @cached_property
    def among_themselves(self) -> Moments:
        """Of each of these P samples' alignments with the others of them."""
        return Moments.within(*map(symmetric, self.matrices))

    def largest_change(self) -> float:
        """Largest difference between any output before and after, the captions' among them."""
        pairs = [(self.before.views, self.after.views)]
        if self.before.captions is not None and self.after.captions is not None:
            pairs.append((self.before.captions, self.after.captions))
        return max(float(np.abs(before - after).max()) for before, after in pairs)


@dataclass(frozen=True)
class Reference:
    """Samples that own ones are held against. What is computed of them once is kept, so that the
    next audit against the same reference computes own and cross alignments only."""

    levels: Mapping[Level, Outputs]
    kept: dict[tuple[Hashable, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    """Statistics of its own, once they have been computed, by what they depend on."""

    def __len__(self) -> int:
        return len(next(iter(self.levels.values())))


def symmetric(matrix: Floats) -> Floats:
    """(N, N) mean of the matrix and its transpose."""
    mean: Floats = (matrix + matrix.T) / np.float32(2)
    return mean


def _side(outputs: Floats, captions: Floats | None, chosen: Index) -> Side:
    if captions is None:
        return Side(outputs[:, chosen], view_cosines(outputs))
    return Side(outputs[:, chosen], caption_cosines(outputs, captions), captions[chosen])
