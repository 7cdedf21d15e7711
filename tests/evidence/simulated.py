"""Outputs with known properties, made on arrays: no encoder is run."""

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit import Outputs, Reference, Side

DIMENSIONS = 16
VIEWS = 4
KINDS = 5
NOISE = 0.6
"""Of a view around its sample, whose length is about 1 a dimension."""


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """L2-normalised along the last axis."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    normalised: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return normalised


def simulated(
    n: int,
    rng: np.random.Generator,
    *,
    views: int = VIEWS,
    forgotten: float = 0.0,
    shared: float = 0.0,
    heavy: bool = False,
) -> Outputs:
    """Samples of one kind. `forgotten` adds noise to views after, so that they are less aligned.

    shared: share of the view noise that all samples have in common (correlated views); heavy: view
    noise of very different size from sample to sample.
    """
    samples = rng.normal(size=(n, DIMENSIONS))
    noise = rng.normal(size=(views, n, DIMENSIONS)) * np.sqrt(1 - shared)
    noise += rng.normal(size=(views, 1, DIMENSIONS)) * np.sqrt(shared)
    scale = np.abs(rng.standard_t(2, size=(n, 1))) if heavy else 1.0
    moved = samples + 0.3 * rng.normal(size=(n, DIMENSIONS))
    again = 0.8 * noise + 0.6 * rng.normal(size=noise.shape)
    return Outputs.of(
        unit(samples + NOISE * scale * noise), unit(moved + (NOISE + forgotten) * scale * again)
    )


def part(outputs: Outputs, index: range) -> Outputs:
    """Some of the samples."""
    chosen = np.array(index)
    sides = (
        Side(side.views[:, chosen], side.cosines[chosen])
        for side in (outputs.before, outputs.after)
    )
    return Outputs(*sides, np.arange(len(chosen)))


class Kinds:
    """Samples of several kinds, each of which the encoder after treats in a way of its own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._centres = 1.5 * rng.normal(size=(KINDS, DIMENSIONS))
        self._moved = self._centres + 0.3 * rng.normal(size=(KINDS, DIMENSIONS))
        self._louder = np.exp(0.3 * rng.normal(size=KINDS))
        self._wider = np.exp(0.2 * rng.normal(size=KINDS))

    def draw(self, n: int, kinds: NDArray[np.int64], forgotten: float = 0.0) -> Outputs:
        """n samples of random ones of `kinds`."""
        rng = self._rng
        kind = rng.choice(kinds, size=n)
        own = rng.normal(size=(n, DIMENSIONS))
        noise = NOISE * rng.normal(size=(VIEWS, n, DIMENSIONS))
        before = self._centres[kind] + own + noise
        louder = self._louder[kind][:, None] + forgotten
        after = self._moved[kind] + own * self._wider[kind][:, None] + noise * louder
        return Outputs.of(unit(before), unit(after))


def reference(n: int, rng: np.random.Generator, *, forgotten: float = 0.0) -> Reference:
    """`simulated` at one level."""
    return Reference({"encoder": simulated(n, rng, forgotten=forgotten)})


def names(n: int) -> list[str]:
    """Keys of n own samples."""
    return [f"own-{i}" for i in range(n)]
