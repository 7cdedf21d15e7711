from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from expunge.unlearning.metrics.measure import mean_of, percentage, wilson_interval
from expunge.unlearning.metrics.membership import (
    area_under_curve,
    confidence_attack,
    encoder_attack,
    members_found,
    search_threshold,
)

Array = NDArray[np.float64]


def scores(count: int, mean: float, seed: int, decimals: int) -> Array:
    """Few decimals give many ties."""
    return np.random.default_rng(seed).normal(mean, 0.15, count).round(decimals)


GROUPS = {
    "ties": (scores(30, 0.7, 0, 1), scores(30, 0.6, 1, 1)),
    "fine": (scores(40, 0.7, 2, 8), scores(40, 0.6, 3, 8)),
    "unequal": (scores(23, 0.7, 4, 2), scores(9, 0.5, 5, 2)),
    "negative": (scores(20, -0.3, 6, 3), scores(20, -0.4, 7, 3)),
    "reversed": (scores(20, 0.4, 8, 2), scores(20, 0.7, 9, 2)),
    "one of each": (np.array([0.8]), np.array([0.2])),
    "one of each, reversed": (np.array([0.2]), np.array([0.8])),
    "all equal": (np.full(5, 0.5), np.full(4, 0.5)),
    "edges of the grid": (np.array([0.0, 0.002, 1.0]), np.array([0.0, 0.002, 0.998])),
}
groups = pytest.mark.parametrize(
    ("members", "others"), [pytest.param(*pair, id=name) for name, pair in GROUPS.items()]
)


def slow_search(members: Array, others: Array, candidates: list[float]) -> tuple[float, Fraction]:
    """The definition, threshold by threshold, in whole numbers; the first maximum wins."""
    best: tuple[float, Fraction] | None = None
    for threshold in candidates:
        found = Fraction(sum(bool(s >= threshold) for s in members), len(members))
        rejected = Fraction(sum(bool(s < threshold) for s in others), len(others))
        accuracy = (found + rejected) / 2
        if best is None or accuracy > best[1]:
            best = (threshold, accuracy)
    assert best is not None
    return best


@groups
def test_sorted_search_equals_trying_every_score(members: Array, others: Array) -> None:
    slow = slow_search(members, others, sorted({*members.tolist(), *others.tolist()}))
    ours = search_threshold(members, others)
    assert ours.value == slow[0]
    assert ours.balanced_accuracy == pytest.approx(float(slow[1]), abs=1e-15)


@groups
def test_grid_search_equals_the_released_definition(members: Array, others: Array) -> None:
    edges = np.histogram_bin_edges(np.array([0.5]), range=(0, 1), bins=500)
    assert len(edges) == 501
    slow = slow_search(members, others, edges.tolist())
    ours = search_threshold(members, others, "grid500")
    assert ours.value == slow[0]
    assert ours.balanced_accuracy == pytest.approx(float(slow[1]), abs=1e-15)


def test_the_grid_is_blind_to_negative_scores_and_the_sorted_search_is_not() -> None:
    members, others = np.full(10, -0.1), np.full(10, -0.5)
    assert search_threshold(members, others, "grid500").balanced_accuracy == 0.5
    assert search_threshold(members, others).balanced_accuracy == 1


@groups
def test_auc_equals_the_loop_over_pairs_and_scikit_learn(members: Array, others: Array) -> None:
    wins = np.array([[(m > o) + 0.5 * (m == o) for o in others] for m in members])
    area = area_under_curve(members, others, seed=2)
    assert area.value == pytest.approx(wins.mean())
    assert (area.n, area.seed) == (len(members) + len(others), 2)
    labels = np.repeat([1, 0], [len(members), len(others)])
    slow = roc_auc_score(labels, np.concatenate([members, others]))
    assert area.value == pytest.approx(slow)
    if len(members) < 2:
        assert area.interval is None
        return
    by_member, by_other = wins.mean(1), wins.mean(0)
    variance = by_member.var(ddof=1) / len(members) + by_other.var(ddof=1) / len(others)
    half = 1.959964 * np.sqrt(variance)
    expected = np.clip([wins.mean() - half, wins.mean() + half], 0, 1)
    np.testing.assert_allclose(area.interval, expected, atol=1e-6)


def test_intervals_of_the_auc_cover_the_truth_about_as_often_as_they_say() -> None:
    """Normal scores one apart have an area of Phi(1 / sqrt(2))."""
    rng, truth = np.random.default_rng(0), 0.7602499
    covered = 0
    for _ in range(1000):
        interval = area_under_curve(rng.normal(1, 1, 60), rng.normal(0, 1, 40), seed=0).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.92 <= covered / 1000 <= 0.97


@groups
@pytest.mark.parametrize("rate", [0, 0.01, 0.1, 0.5, 1])
def test_members_found_equals_trying_every_threshold(
    members: Array, others: Array, rate: float
) -> None:
    slow = 0
    for threshold in [*members, *others, np.inf]:
        if sum(bool(o >= threshold) for o in others) <= rate * len(others):
            slow = max(slow, sum(bool(m >= threshold) for m in members))
    assert members_found(members, others, rate) == slow


def test_one_percent_of_a_hundred_is_one_false_positive() -> None:
    others = np.arange(100.0)
    assert members_found(np.array([98.5, 97.5, 99.5]), others) == 2


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf]])
def test_empty_and_non_finite_scores_are_refused(bad: list[float]) -> None:
    good = np.array([0.5])
    for members, others, unlearned in [(bad, good, good), (good, bad, good), (good, good, bad)]:
        groups = [np.array(each, dtype=np.float64) for each in (members, others, unlearned)]
        with pytest.raises(ValueError, match="member"):
            encoder_attack(*groups, seed=0)
        with pytest.raises(ValueError, match="member"):
            confidence_attack(*groups, seed=0)


def test_the_encoder_attack_on_known_answers() -> None:
    """Members 0.9, others 0.1: a perfect attack, and U as far forgotten as its share below 0.9."""
    unlearned = np.array([0.95, 0.9, 0.89, 0.1])
    attack = encoder_attack(np.full(50, 0.9), np.full(50, 0.1), unlearned, seed=7)
    assert attack.threshold == 0.9
    assert (attack.efficacy.value, attack.efficacy.n, attack.efficacy.seed) == (50, 4, 7)
    assert (attack.accuracy.value, attack.accuracy.n) == (100, 100)
    assert (attack.auc.value, attack.tpr_at_1_percent_fpr.value) == (1, 100)


def test_an_attack_without_signal_is_near_chance() -> None:
    rng = np.random.default_rng(0)
    members, others, unlearned = (rng.normal(size=4000) for _ in range(3))
    attack = encoder_attack(members, others, unlearned, seed=0)
    assert attack.auc.value == pytest.approx(0.5, abs=0.03)
    assert attack.auc.interval is not None
    assert attack.auc.interval[0] < 0.5 < attack.auc.interval[1]
    assert attack.accuracy.value == pytest.approx(50, abs=3)
    assert attack.tpr_at_1_percent_fpr.value == pytest.approx(1, abs=1)


@pytest.mark.parametrize(("shape", "seed"), [((8, 1), 0), ((8, 3), 1), ((2, 2), 2)])
@pytest.mark.parametrize("decimals", [2, 8])
def test_the_confidence_attack_equals_a_machine_fitted_on_every_sample(
    shape: tuple[int, int], seed: int, decimals: int
) -> None:
    rng = np.random.default_rng(seed)
    members, unlearned = rng.beta(*shape, 80).round(decimals), rng.beta(3, 2, 61).round(decimals)
    others = rng.beta(2, 1, 80).round(decimals)
    machine = SVC(C=3, gamma="auto", kernel="rbf")
    every = np.concatenate([members, others])[:, None]
    machine.fit(every, np.repeat([1, 0], 80))
    attack = confidence_attack(members, others, unlearned, seed=3, exact=True)
    spared = 100 * (1 - machine.predict(unlearned[:, None]).mean())
    right = 100 * (machine.predict(every) == np.repeat([1, 0], 80)).mean()
    assert attack.efficacy.value == pytest.approx(spared)
    assert attack.accuracy.value == pytest.approx(right)
    assert attack.threshold is None
    judged = [machine.predict([[score]])[0] == 0 for score in others]
    assert attack.rejected.tolist() == judged
    assert attack.specificity.value == pytest.approx(100 * sum(judged) / 80)
    assert attack.specificity.n == 80


def test_the_rounded_attack_equals_a_machine_fitted_on_every_rounded_sample() -> None:
    rng = np.random.default_rng(5)
    members, others, unlearned = (rng.beta(*shape, 300) for shape in ((8, 1), (4, 1), (6, 1)))
    rounded = [np.array([round(s * 1024) / 1024 for s in group]) for group in (members, others)]
    machine = SVC(C=3, gamma="auto", kernel="rbf")
    machine.fit(np.concatenate(rounded)[:, None], np.repeat([1, 0], 300))
    attack = confidence_attack(members, others, unlearned, seed=0)
    spared = 100 * (1 - machine.predict(unlearned[:, None]).mean())
    assert 10 < spared < 90
    assert attack.efficacy.value == pytest.approx(spared, abs=0.4)


@pytest.mark.parametrize("shape", [(8, 1), (3, 1), (2, 2)])
def test_rounding_moves_the_confidence_attack_less_than_sampling_does(
    shape: tuple[int, int],
) -> None:
    rng = np.random.default_rng(6)
    members, others, unlearned = rng.beta(*shape, 600), rng.beta(1, 1, 600), rng.beta(3, 2, 1000)
    exact = confidence_attack(members, others, unlearned, seed=0, exact=True).efficacy
    rounded = confidence_attack(members, others, unlearned, seed=0).efficacy
    assert rounded.value == pytest.approx(exact.value, abs=0.6)
    assert exact.interval is not None
    assert exact.interval[1] - exact.interval[0] > 2


def test_the_confidence_attack_copes_with_equal_confidences() -> None:
    attack = confidence_attack(np.ones(30), np.ones(30), np.ones(5), seed=0)
    assert attack.efficacy.value in (0, 100)
    assert attack.accuracy.value == 50
    assert attack.auc.value == 0.5


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (10, 20), (450, 4500)])
def test_wilson_interval_holds_the_shares_that_would_not_surprise(hits: int, n: int) -> None:
    shares = np.linspace(0, 1, 200_001)
    fits = np.abs(hits / n - shares) <= 1.959964 * np.sqrt(shares * (1 - shares) / n)
    low, high = wilson_interval(hits, n)
    assert low == pytest.approx(shares[fits].min(), abs=1e-5)
    assert high == pytest.approx(shares[fits].max(), abs=1e-5)


def test_wilson_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    drawn = np.random.default_rng(0).binomial(60, 0.2, 2000)
    intervals = [wilson_interval(int(hits), 60) for hits in drawn]
    covered = np.mean([low <= 0.2 <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.97


def test_measures_carry_n_seed_and_interval() -> None:
    share = percentage(3, 12, seed=5)
    assert (share.value, share.n, share.seed) == (25, 12, 5)
    assert share.interval is not None
    assert share.interval[0] < 25 < share.interval[1]
    values = np.random.default_rng(0).normal(size=50)
    mean = mean_of(values, seed=1)
    half = 1.959964 * np.std(values, ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(mean.interval, [values.mean() - half, values.mean() + half])
    assert mean_of(values[:1], seed=1).interval is None
    with pytest.raises(ValueError, match="at least one sample"):
        wilson_interval(0, 0)
