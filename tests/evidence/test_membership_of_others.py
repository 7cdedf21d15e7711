"""Quantiles of retained samples tell nothing of a single one: who guesses from them is right as often as by chance."""

import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.evidence.audit import Outputs, Reference
from expunge.evidence.audit.placing import null_quantiles

Array = NDArray[np.float64]

REFERENCE, VIEWS, DIMS = 64, 3, 6
"""The smallest reference that there is, in which one sample counts most."""
WORLDS = 120


def world(rng: np.random.Generator, victim: Array | None) -> Reference:
    """Outputs of 64 samples before and after; the victim's, (2, V, D), among them if there is one."""
    centres = rng.normal(size=(REFERENCE, DIMS))
    sides = np.stack([centres + 0.6 * rng.normal(size=(VIEWS, REFERENCE, DIMS)) for _ in range(2)])
    if victim is not None:
        sides[:, :, rng.integers(REFERENCE)] = victim
    sides /= np.linalg.norm(sides, axis=3, keepdims=True)
    before, after = sides.astype(np.float32)
    return Reference({"encoder": Outputs.of(before, after)})


def told(reference: Reference, n: int, rng: np.random.Generator) -> Array:
    """All numbers that an attacker gets of the reference."""
    quantiles = null_quantiles(reference, n, int(rng.integers(1 << 32)))
    assert quantiles is not None
    return np.concatenate([np.array(each) for each in quantiles.levels["encoder"].values()])


def guesses(worlds: Array, held: NDArray[np.bool_]) -> float:
    """AUC of the best linear guess learnt on half of the worlds, on the other half."""
    half = len(worlds) // 2
    seen, labels = worlds[:half], held[:half]
    spread = np.cov(seen.T) + 1e-3 * np.trace(np.cov(seen.T)) / worlds.shape[1] * np.eye(
        worlds.shape[1]
    )
    direction = np.linalg.solve(spread, seen[labels].mean(axis=0) - seen[~labels].mean(axis=0))
    scores, truth = worlds[half:] @ direction, held[half:]
    pairs = scores[truth][:, None] - scores[~truth][None]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


@pytest.mark.parametrize("n", [1, 8])
def test_whether_the_victim_is_among_them_is_guessed_by_chance(n: int) -> None:
    rng = np.random.default_rng(n)
    victim = rng.normal(size=DIMS) + 0.6 * rng.normal(size=(2, VIEWS, DIMS))
    held = np.arange(WORLDS) % 2 == 0
    worlds = np.stack([told(world(rng, victim if each else None), n, rng) for each in held])
    # Hanley and McNeil (1982) at AUC 1/2, for 30 and 30 worlds.
    deviation = np.sqrt((1 / 4 + 2 * 29 * (1 / 3 - 1 / 4)) / 30**2)
    assert abs(guesses(worlds, held) - 0.5) < 2.6 * deviation


def test_one_sample_moves_the_quantiles_less_than_another_draw_does() -> None:
    """Attackers who know all other 63 samples are not those of this test: such a swap is all they do not know."""
    rng = np.random.default_rng(0)
    victim = rng.normal(size=DIMS) + 0.6 * rng.normal(size=(2, VIEWS, DIMS))
    swaps, draws = [], []
    for seed in range(12):
        found = [
            told(world(np.random.default_rng(chosen), who), 8, np.random.default_rng(seed))
            for chosen, who in ((seed, None), (seed, victim), (seed + 1000, None))
        ]
        swaps.append(np.abs(found[1] - found[0]).mean())
        draws.append(np.abs(found[2] - found[0]).mean())
    assert np.mean(swaps) < np.mean(draws) / 2
