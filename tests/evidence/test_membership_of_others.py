"""Reports tell nothing of a single retained sample: who guesses from them is right as often as by chance."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.evidence.audit import Outputs, Reference, audit
from expunge.evidence.audit.placing import null_quantiles

Array = NDArray[np.float64]

REFERENCE, VIEWS, DIMS = 64, 3, 6
"""The smallest reference that there is, in which one sample counts most."""
WORLDS = 120


def world(rng: np.random.Generator, victim: Array | None, dims: int = DIMS) -> Reference:
    """Outputs of 64 samples before and after; the victim's, (2, V, D), among them if there is one."""
    centres = rng.normal(size=(REFERENCE, dims))
    sides = np.stack([centres + 0.6 * rng.normal(size=(VIEWS, REFERENCE, dims)) for _ in range(2)])
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


COPIES, FAR_APART, AUDITS = 40, 48, 60
"""The attacker's near-copies of the victim's image; dimensions in which they are a kind of their own."""


def report_of(rng: np.random.Generator, own: Outputs, victim: Array | None) -> dict[str, float]:
    """All numbers about others in an audit of these samples, with the victim's among the others or not."""
    others = world(rng, victim, FAR_APART)
    keys = [str(number) for number in range(COPIES)]
    seed = int(rng.integers(1 << 32))
    found = audit({"encoder": own}, keys, others, others, seed=seed).to_dict()
    del found["seed"]
    for level in found["levels"].values():
        for name in ("forgetting_score", "negative_alignment"):
            del level[name]
    return dict(leaves(found))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a document by its path."""
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list | tuple):
            yield from leaves(inner, f"{path}/{name}")
        elif isinstance(inner, int | float):
            yield f"{path}/{name}", float(inner)


def test_near_copies_of_the_victims_image_do_not_tell_whether_it_was_retained() -> None:
    rng = np.random.default_rng(5)
    victim = rng.normal(size=FAR_APART) + 0.6 * rng.normal(size=(2, VIEWS, FAR_APART))
    copies = victim[:, :, None] + 0.05 * rng.normal(size=(2, VIEWS, COPIES, FAR_APART))
    before, after = (copies / np.linalg.norm(copies, axis=3, keepdims=True)).astype(np.float32)
    own = Outputs.of(before, after)
    held = np.arange(AUDITS) % 2 == 0
    worlds = [report_of(rng, own, victim if each else None) for each in held]
    names = sorted(set().union(*worlds))
    assert any("/retained/" in name for name in names)
    for name in names:
        # What is missing is a number too.
        with_it, without = (
            np.array(
                [
                    each.get(name, -1e9)
                    for each, mark in zip(worlds, held, strict=True)
                    if mark == side
                ]
            )
            for side in (True, False)
        )
        pairs = with_it[:, None] - without[None]
        auc = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
        # Hanley and McNeil (1982) at AUC 1/2; z = 4 for all numbers together.
        deviation = np.sqrt((1 / 4 + 2 * 29 * (1 / 3 - 1 / 4)) / 30**2)
        assert abs(auc - 0.5) < 4 * deviation, name


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
