from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from tests.evidence.simulated import KINDS, Kinds, part, simulated, unit

from expunge.evidence.audit import Outputs, looks
from expunge.evidence.audit.looks import LOOKS, Pool, draw_means
from expunge.evidence.audit.permutation import Outcome, distinct, permute, plain_draws
from expunge.evidence.audit.strata import matched_draws, strata

FORGETTING, NEGATIVE, PROFILE = LOOKS
PERMUTATIONS = 199
LEVEL = 0.05


def pool_of(own: int, reference: int, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    return Pool.of(simulated(own, rng), simulated(reference, rng))


def p_of(pool: Pool, draws: NDArray[np.int64]) -> float:
    return permute({"encoder": pool}, draws).p


def within_chance(found: int, trials: int, level: float = LEVEL) -> bool:
    """Whether so many rejections are no surprise at this level, at 99.9 %."""
    low, high = binom.interval(0.999, trials, level)
    return bool(low <= found <= high)


def test_a_pool_holds_the_alignment_of_all_with_all() -> None:
    rng = np.random.default_rng(0)
    own, other = simulated(3, rng), simulated(4, rng)
    pool = Pool.of(own, other)
    views = np.concatenate([own.before.views, other.before.views], axis=1).astype(np.float64)
    for i in range(7):
        for j in range(7):
            pairs = [views[v, i] @ views[w, j] for v in range(4) for w in range(4) if v != w]
            assert pool.before[i, j] == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.parametrize("size", [2, 5, 40])
def test_statistics_of_draws_equal_the_loop_over_samples_and_pairs(size: int) -> None:
    pool = pool_of(10, 50)
    draws = distinct(size, 60, np.random.default_rng(1), 20)
    scores = draw_means(FORGETTING, FORGETTING.measure(pool), draws)
    changes = draw_means(NEGATIVE, NEGATIVE.measure(pool), draws)
    for b, draw in enumerate(draws):
        lost = [float(pool.before[i, i] - pool.after[i, i]) for i in draw]
        assert scores[b] == pytest.approx(np.mean(lost), abs=1e-6)
        gained = [float(pool.after[i, j] - pool.before[i, j]) for i in draw for j in draw if i != j]
        assert changes[b] == pytest.approx(np.mean(gained), abs=1e-6)


def test_profiles_are_compared_by_the_correlation_of_what_is_off_the_diagonal() -> None:
    pool = pool_of(3, 20)
    changes = PROFILE.measure(pool)
    for i in range(23):
        others = np.arange(23) != i
        correlation = np.corrcoef(pool.before[i, others], pool.after[i, others])[0, 1]
        assert changes[i] == pytest.approx(1 - correlation, abs=1e-6)
    still = PROFILE.measure(Pool(pool.before, pool.before))
    np.testing.assert_allclose(still, 0, atol=1e-12)


def test_pairs_are_looked_up_in_chunks_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, rng = pool_of(10, 50), np.random.default_rng(1)
    for size in (3, 40):
        draws = distinct(size, 60, rng, 30)
        whole = draw_means(NEGATIVE, NEGATIVE.measure(pool), draws)
        with monkeypatch.context() as patch:
            patch.setattr(looks, "CHUNK_NUMBERS", 100)
            np.testing.assert_allclose(
                draw_means(NEGATIVE, NEGATIVE.measure(pool), draws), whole, atol=1e-7
            )


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
    z = (values - values.mean(0)) / values.std(0)
    z[:, 1] = np.abs(z[:, 1])
    outcome = Outcome([("encoder", FORGETTING), ("encoder", NEGATIVE)], values, z)
    largest = [max(row) for row in z.tolist()]
    assert outcome.p == sum(each >= largest[0] for each in largest) / 50
    for look in (0, 1):
        by_hand = sum(each >= z[0, look] for each in largest) / 50
        assert outcome.adjusted_p(look) == by_hand
        assert outcome.adjusted_p(look) >= outcome.p


def test_one_own_sample_is_compared_with_every_other_once() -> None:
    pool = pool_of(1, 70)
    outcome = permute({"encoder": pool}, plain_draws(1, 70, np.random.default_rng(0)))
    assert [look.name for _, look in outcome.looks] == ["forgetting_score", "profile_change"]
    scores = np.diagonal(pool.before).astype(float) - np.diagonal(pool.after)
    alone = permute({"encoder": pool}, plain_draws(1, 70, np.random.default_rng(0)), [FORGETTING])
    assert alone.p == pytest.approx(np.mean(scores >= scores[0]), abs=1e-9)


def test_equal_draws_of_equal_encoders_give_no_evidence() -> None:
    pool = pool_of(8, 64)
    still = Pool(pool.before, pool.before)
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
        kinds = strata(own, kept, rng)
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
        kinds = strata(own, kept, rng)
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
            draws = matched_draws(strata(own, kept, rng), n, rng, PERMUTATIONS)
            hits += p_of(Pool.of(own, kept), draws) <= LEVEL
        found.append(hits / trials)
    assert found[0] < found[1] - 0.2 < found[2] - 0.3
    assert found[2] > 0.9


def test_strata_hold_samples_of_one_kind_and_are_no_smaller_than_half_the_average() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(2, 16))
    views = centres[np.arange(120) % 2] + rng.normal(size=(4, 120, 16))
    same = Outputs.of(unit(views), unit(views))
    found = strata(part(same, range(20)), part(same, range(20, 120)), rng)
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
