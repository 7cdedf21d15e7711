"""Uncertainties against formulas and simulations; flags and ToW on hand-made differences."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.unlearning.comparison.estimates import Estimate, Term, combine, scaled
from expunge.unlearning.comparison.gaps import overdone, tug_of_war, uncertainty_between
from expunge.unlearning.comparison.records import Row
from expunge.unlearning.comparison.table import cell, rank_agreement
from expunge.unlearning.evaluation import Counted, Outcome
from expunge.unlearning.metrics.measure import Measure

Z = 1.959964
Rows = list[dict[str, Outcome]]


def row(values: NDArray[np.bool_], counted: Counted = "forget") -> Rows:
    """(S, n) outcomes of a column, by seed."""
    return [{"emia": Outcome(counted, each, 100.0)} for each in values]


def difference(one: Rows, other: Rows) -> Estimate:
    return combine([Term(1, "emia", one), Term(-1, "emia", other)])


def test_two_rows_of_one_seed_are_compared_sample_by_sample() -> None:
    """McNemar's variance: (b + c - (b - c)^2 / n) / n^2, with n - 1 for unbiasedness."""
    rng = np.random.default_rng(0)
    one, other = rng.random((1, 50)) < 0.7, rng.random((1, 50)) < 0.4
    found = difference(row(one), row(other))
    b, c = int((one & ~other).sum()), int((other & ~one).sum())
    variance = (b + c - (b - c) ** 2 / 50) / (50 * 49)
    assert found.value == pytest.approx(100 * (b - c) / 50)
    assert found.uncertainty == pytest.approx(100 * Z * sqrt(variance), rel=1e-5)


def test_what_two_rows_have_in_common_cancels() -> None:
    rng = np.random.default_rng(1)
    one = rng.random((1, 400)) < 0.5
    other = one.copy()
    other[0, :4] ^= True
    paired = difference(row(one), row(other)).uncertainty
    unpaired = difference(row(one), row(rng.permuted(other, axis=1))).uncertainty
    assert paired is not None
    assert unpaired is not None
    assert paired < unpaired / 3


def test_sets_are_independent_of_each_other() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.random((1, 60)) < 0.5, rng.random((1, 90)) < 0.5
    found = difference(row(one), row(other, "test"))
    variance = one.var(ddof=1) / 60 + other.var(ddof=1) / 90
    assert found.uncertainty == pytest.approx(100 * Z * sqrt(variance), rel=1e-5)


def test_seeds_add_their_spread_and_do_not_count_samples_twice() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((4, 30)) < 0.5
    found = combine([Term(0.5, "emia", row(values))])
    sampling = (50 * values.mean(axis=0)).var(ddof=1) / 30
    between = (50 * values.mean(axis=1)).var(ddof=1) / 4
    assert found.value == pytest.approx(50 * values.mean())
    assert found.uncertainty == pytest.approx(Z * sqrt(sampling + between), rel=1e-5)
    same = np.repeat(values[:1], 4, axis=0)
    assert combine([Term(1, "emia", row(same))]).uncertainty == pytest.approx(
        combine([Term(1, "emia", row(values[:1]))]).uncertainty
    )


def test_counts_that_do_not_vary_are_not_certain() -> None:
    """None of 20 differs: not less than one sample's worth is claimed."""
    same = np.ones((1, 20), dtype=np.bool_)
    assert difference(row(same), row(same)).uncertainty == pytest.approx(Z * 5, rel=1e-5)
    single = [{"fs": Outcome("forget", np.array([0.3]), 1.0)}]
    assert combine([Term(1, "fs", single)]).uncertainty is None


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        common = rng.random(200)
        one, other = common < 0.6, (common + 0.1 * rng.normal(size=200)) < 0.5
        found = difference(row(one[None]), row(other[None]))
        assert found.uncertainty is not None
        hits += abs(found.value - 10) <= found.uncertainty
    assert 0.9 < hits / 400 < 0.99


def test_the_distance_of_two_gaps_takes_their_common_reference_out() -> None:
    rng = np.random.default_rng(5)
    reference = rng.random((1, 300)) < 0.5
    one, other = rng.random((2, 1, 300)) < 0.9
    gaps = [[Term(1, "emia", row(each)), Term(-1, "emia", row(reference))] for each in (one, other)]
    between = uncertainty_between(*gaps)
    assert between == pytest.approx(difference(row(one), row(other)).uncertainty)
    assert between < combine(gaps[0]).uncertainty
    assert combine(scaled(gaps[0], -2)).value == pytest.approx(-2 * combine(gaps[0]).value)


@pytest.mark.parametrize(
    ("differences", "flagged"),
    [
        ({"emia": (5, 4)}, ["emia"]),
        ({"emia": (5, 6), "cmia": (-9, 1)}, []),
        ({"ua": (-5, 4), "cmia": (3, 1)}, ["cmia", "ua"]),
        ({"ua": (5, 4), "ra": (-50, 1), "ta": (-50, 1)}, []),
        ({"emia": (50, None)}, []),
        ({}, []),
    ],
)
def test_only_what_is_surely_beyond_retrain_is_overdone(
    differences: dict[str, tuple[float, float | None]], flagged: list[str]
) -> None:
    assert overdone({name: Estimate(*each) for name, each in differences.items()}) == flagged


def test_tug_of_war_is_the_product_over_the_three_accuracies() -> None:
    differences = {"ua": Estimate(-10, 1), "ra": Estimate(20, None), "ta": Estimate(0, 1)}
    assert tug_of_war({**differences, "emia": Estimate(99, 1)}) == pytest.approx(0.9 * 0.8)
    assert tug_of_war({**differences, "ua": Estimate(100, 1)}) == 0
    assert tug_of_war({"ua": Estimate(1, 1)}) is None


def test_a_cell_averages_the_seeds() -> None:
    found = cell([Measure(1.0, 9, 0, [0.5, 2.0]), Measure(4.0, 9, 7, [3.5, 5.0])])
    assert (found.mean, found.interval, found.n, found.seeds) == (2.5, [2.0, 3.5], 9, [0, 7])
    assert found.std == pytest.approx(sqrt(4.5))
    assert cell([Measure(1.0, 9, 0)]).std is None
    assert cell([Measure(1.0, 9, 0), Measure(1.0, 9, 1, [0, 1])]).interval is None


def slow_tau(pairs: list[tuple[float, float]]) -> float:
    """Concordant minus discordant pairs over all pairs, without ties."""
    score = total = 0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[:i]:
            score += 1 if (a - c) * (b - d) > 0 else -1
            total += 1
    return score / total


def test_ranks_agree_as_counting_pairs_says(make_row: Callable[..., Row]) -> None:
    gaps = [(1.0, 3.0), (2.0, 2.5), (5.0, 7.0), (4.0, 9.0)]
    rows: list[Row] = [make_row(f"m{i}", *each) for i, each in enumerate(gaps)]
    found = rank_agreement(rows)
    assert found is not None
    assert found.kendall_tau == pytest.approx(slow_tau(gaps))
    places = [[sorted(column).index(v) for v in column] for column in zip(*gaps, strict=True)]
    assert found.spearman_rho == pytest.approx(np.corrcoef(places)[0, 1])
    assert found.n == 4
    assert rank_agreement(rows[:2]) is None
    assert rank_agreement([make_row(str(i), 1.0, float(i)) for i in range(4)]) is None
    assert rank_agreement([*rows[:2], make_row("bad", 9.0, 9.0, failure="no")]) is None
