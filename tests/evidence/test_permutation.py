from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from tests.evidence.simulated import KINDS, Kinds, part, simulated, unit

from expunge.evidence.audit import Outputs
from expunge.evidence.audit.looks import (
    LOOKS,
    Pool,
    forgetting_scores,
    neighbourhood_alignments,
    profile_changes,
)
from expunge.evidence.audit.permutation import (
    Outcome,
    conspicuous,
    distinct,
    permute,
    plain_draws,
    studentised,
)
from expunge.evidence.audit.strata import matched_draws, strata

Matrix = NDArray[np.float64]

PERMUTATIONS = 199
LEVEL = 0.05


def pool_of(own: int, reference: int, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    return Pool.of(simulated(own, rng), simulated(reference, rng))


def matrices_of(own: int, reference: int, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Before and after: alignments of all samples of `pool_of` with all, in plain loops."""
    rng = np.random.default_rng(seed)
    mine, theirs = simulated(own, rng), simulated(reference, rng)
    sides = [(mine.before, theirs.before), (mine.after, theirs.after)]
    before, after = (
        np.concatenate([first.views, second.views], axis=1).astype(np.float64)
        for first, second in sides
    )
    return all_with_all(before), all_with_all(after)


def all_with_all(views: Matrix) -> Matrix:
    count, samples, _ = views.shape
    matrix = np.zeros((samples, samples))
    for i in range(samples):
        for j in range(samples):
            pairs = [
                views[v, i] @ views[w, j] for v in range(count) for w in range(count) if v != w
            ]
            matrix[i, j] = np.mean(pairs)
    return matrix


def p_of(pool: Pool, draws: NDArray[np.int64]) -> float:
    return permute({"encoder": pool}, draws).p


def within_chance(found: int, trials: int, level: float = LEVEL) -> bool:
    """Whether so many rejections are no surprise at this level, at 99.9 %."""
    low, high = binom.interval(0.999, trials, level)
    return bool(low <= found <= high)


def test_looks_equal_their_loops() -> None:
    pool, (before, after) = pool_of(3, 20), matrices_of(3, 20)
    scores, means, changes = (
        look(pool) for look in (forgetting_scores, neighbourhood_alignments, profile_changes)
    )
    for i in range(23):
        others = np.arange(23) != i
        assert scores[i] == pytest.approx(before[i, i] - after[i, i], abs=1e-6)
        assert means[i] == pytest.approx(np.mean(after[i, others] - before[i, others]), abs=1e-6)
        correlation = np.corrcoef(before[i, others], after[i, others])[0, 1]
        assert changes[i] == pytest.approx(1 - correlation, abs=1e-6)


def test_a_pool_is_the_same_from_its_matrices() -> None:
    pool, matrices = pool_of(3, 20), matrices_of(3, 20)
    whole = Pool.of_matrices(*(each.astype(np.float32) for each in matrices))
    for look in LOOKS:
        np.testing.assert_allclose(look.measure(pool), look.measure(whole), atol=1e-6)


def test_profiles_that_did_not_change_are_exactly_unchanged() -> None:
    before, after = (each.astype(np.float32) for each in matrices_of(3, 20))
    assert (profile_changes(Pool.of_matrices(before, before)) == 0).all()
    level = np.full_like(before, 0.3)
    assert (profile_changes(Pool.of_matrices(level, after)) == 0).all()


@pytest.mark.parametrize("size", [2, 5])
def test_every_set_of_samples_is_drawn_equally_often(size: int) -> None:
    draws = distinct(size, 6, np.random.default_rng(0), 9000)
    sets = [tuple(sorted(draw)) for draw in draws.tolist()]
    possible = list(combinations(range(6), size))
    share = 1 / len(possible)
    assert set(sets) == set(possible)
    assert all(within_chance(sets.count(each), 9000, share) for each in possible)


def test_p_values_are_those_of_counting_draws_by_hand() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    z = studentised(values)
    np.testing.assert_allclose(z, (values - values.mean(0)) / values.std(0), atol=1e-8)
    outcome = Outcome([("encoder", LOOKS[0]), ("encoder", LOOKS[1])], values, z)
    sums = [sum(max(each, 0) ** 2 for each in row) for row in z.tolist()]
    np.testing.assert_allclose(conspicuous(z), sums)
    assert outcome.p == sum(each >= sums[0] for each in sums) / 50
    for look in (0, 1):
        assert outcome.p_of(look) == sum(each >= z[0, look] for each in z[:, look]) / 50


def test_a_statistic_is_the_mean_of_a_looks_numbers_over_a_draw() -> None:
    pool, draws = pool_of(3, 20), np.array([[0, 1, 2], [5, 3, 9]])
    outcome = permute({"encoder": pool, "projector": pool}, draws)
    assert [level for level, _ in outcome.looks] == ["encoder"] * 3 + ["projector"] * 3
    for k, (_, look) in enumerate(outcome.looks):
        numbers = look.measure(pool)
        slow = [np.mean([numbers[i] for i in draw]) for draw in draws]
        np.testing.assert_allclose(outcome.values[:, k], slow)


def test_one_own_sample_is_compared_with_every_other_once() -> None:
    pool, draws = pool_of(1, 70), plain_draws(1, 70, np.random.default_rng(0))
    scores = forgetting_scores(pool)
    alone = permute({"encoder": pool}, draws, LOOKS[:1])
    assert alone.p_of(0) == pytest.approx(np.mean(scores >= scores[0]), abs=1e-9)


def test_equal_draws_of_equal_encoders_give_no_evidence() -> None:
    before = simulated(72, np.random.default_rng(0)).matrices[0]
    still = Pool.of_matrices(before, before)
    assert p_of(still, plain_draws(8, 64, np.random.default_rng(0), 99)) == 1


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize(
    ("shared", "heavy"), [(0.0, False), (0.8, False), (0.0, True)], ids=["plain", "views", "heavy"]
)
def test_untouched_samples_are_found_no_more_often_than_stated(
    n: int, shared: float, heavy: bool
) -> None:
    trials, found = 150, {"plain": 0, "matched": 0}
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        everything = simulated(n + 127, rng, shared=shared, heavy=heavy)
        own, kept = part(everything, range(n)), part(everything, range(n, n + 127))
        pool = Pool.of(own, kept)
        found["plain"] += p_of(pool, plain_draws(n, 127, rng, PERMUTATIONS)) <= LEVEL
        kinds = strata(own.before.centres, kept.before.centres, rng)
        found["matched"] += p_of(pool, matched_draws(kinds, n, rng, PERMUTATIONS)) <= LEVEL
    assert within_chance(found["plain"], trials)
    assert within_chance(found["matched"], trials)


def test_an_owner_with_images_of_one_kind_is_no_false_alarm() -> None:
    """Every kind drifts in a way of its own; nobody is forgotten."""
    trials, found = 100, {"plain": 0, "matched": 0}
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        world = Kinds(rng)
        own, kept = world.draw(8, np.array([0])), world.draw(250, np.arange(KINDS))
        pool = Pool.of(own, kept)
        found["plain"] += p_of(pool, plain_draws(8, 250, rng, PERMUTATIONS)) <= LEVEL
        kinds = strata(own.before.centres, kept.before.centres, rng)
        found["matched"] += p_of(pool, matched_draws(kinds, 8, rng, PERMUTATIONS)) <= LEVEL
    assert found["plain"] > trials / 4
    assert within_chance(found["matched"], trials)


def test_more_samples_find_the_same_forgetting_more_often() -> None:
    trials, found = 40, []
    for n in (1, 4, 16):
        hits = 0
        for trial in range(trials):
            rng = np.random.default_rng(trial)
            world = Kinds(rng)
            own = world.draw(n, np.arange(KINDS), forgotten=0.25)
            kept = world.draw(200, np.arange(KINDS))
            draws = matched_draws(
                strata(own.before.centres, kept.before.centres, rng), n, rng, PERMUTATIONS
            )
            hits += p_of(Pool.of(own, kept), draws) <= LEVEL
        found.append(hits / trials)
    assert found[0] < found[1] - 0.2 < found[2] - 0.3
    assert found[2] > 0.9


def test_strata_hold_samples_of_one_kind_and_are_no_smaller_than_half_the_average() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(2, 16))
    views = centres[np.arange(120) % 2] + rng.normal(size=(4, 120, 16))
    same = Outputs.of(unit(views), unit(views))
    found = strata(same.before.centres[:20], same.before.centres[20:], rng)
    assert len(found) == 120
    for stratum in np.unique(found):
        members = np.flatnonzero(found == stratum)
        assert len(set(members % 2)) == 1
        assert len(members) >= 12


def test_matched_draws_have_as_many_of_each_stratum_as_the_own_samples() -> None:
    stratum = np.array([3, 1, 1, *([1] * 20), *([2] * 20), *([3] * 20)])
    draws = matched_draws(stratum, 3, np.random.default_rng(0), 50)
    assert draws.shape == (51, 3)
    assert draws[0].tolist() == [0, 1, 2]
    assert all(sorted(stratum[draw]) == [1, 1, 3] for draw in draws)
    assert all(len(set(draw)) == 3 for draw in draws.tolist())
    alone = matched_draws(stratum, 1, np.random.default_rng(0))
    assert alone[:, 0].tolist() == [0, *range(43, 63)]


def test_own_samples_with_fewer_than_eight_others_of_their_kind_take_no_part() -> None:
    stratum = np.array([0, 1, 0, 2, *([0] * 8), *([1] * 7), *([2] * 9)])
    draws = matched_draws(stratum, 4, np.random.default_rng(0), 50)
    assert draws[0].tolist() == [0, 2, 3]
    assert all(sorted(stratum[draw]) == [0, 0, 2] for draw in draws)
    alone = matched_draws(np.array([0, 1, *([0] * 8), *([1] * 7)]), 2, np.random.default_rng(0))
    assert alone[:, 0].tolist() == [0, *range(2, 10)]
    none = matched_draws(np.array([0, 0, *([0] * 7), *([1] * 90)]), 2, np.random.default_rng(0))
    assert none.shape == (1, 0)
