"""The relearning test on simulated alignments whose effect is known."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_ind  # type: ignore[import-untyped]

from expunge.evidence.audit.outputs import Level, Outputs, Side
from expunge.evidence.audit.relearning import (
    ALPHA,
    PERMUTATIONS,
    Relearning,
    expected_false_alarms,
    relearning,
)

Array = NDArray[np.float64]
NOISE = 0.03
"""Standard deviation of a sample's change between two encoders."""
SPREAD = 0.05
"""Of self-alignment over samples."""


def outputs(before: Array, after: Array, kinds: Array | None = None) -> Outputs:
    """Samples of these self-alignments, and of kinds from 0 to 1 that an encoder tells apart; else of one."""
    angles = np.pi * (np.zeros(len(before)) if kinds is None else kinds)
    views = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)[None]
    first, second = (Side(views, each[:, None]) for each in (before, after))
    return Outputs(first, second, np.arange(len(before)))


def simulated(
    rng: np.random.Generator, n: int, *, start: float = 0.0, rise: float = 0.0
) -> Outputs:
    before = 0.7 + start + rng.normal(0, SPREAD, n)
    return outputs(before, before + rise + rng.normal(0, NOISE, n))


def found(own: Outputs, control: Outputs, permutations: int = PERMUTATIONS) -> Relearning:
    answer = relearning({"encoder": own}, {"encoder": control}, permutations=permutations)
    assert answer is not None
    return answer


def share_of_alarms(alpha: float, runs: int, **own: float) -> float:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(runs):
        control = simulated(rng, 40)
        alarms += found(simulated(rng, 12, **own), control, 199).p <= alpha
    return alarms / runs


def test_a_strong_return_is_found_and_its_size_told() -> None:
    rng = np.random.default_rng(0)
    own, control = simulated(rng, 64, rise=0.08), simulated(rng, 300)
    answer = found(own, control)
    assert answer.relearned
    assert answer.p <= ALPHA
    rise = answer.levels["encoder"]
    assert rise.interval[0] < 0.08 < rise.interval[1]
    welch = ttest_ind(-own.scores, -control.scores, equal_var=False).confidence_interval(0.95)
    assert rise.interval == pytest.approx([welch.low, welch.high])
    assert rise.effect_size == pytest.approx(0.08 / NOISE, rel=0.15)
    assert "64 samples" in answer.sentence


def test_alarms_are_as_rare_as_stated_where_nothing_rose() -> None:
    """Own samples that stand above the control all along: the rise alone decides."""
    alarms = share_of_alarms(0.05, 300, start=0.2)
    assert alarms == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 300) ** 0.5)


def test_coming_back_to_the_controls_level_is_no_relearning() -> None:
    """A removal that pushed views too far apart, and a head that was trained without the data."""
    alarms = share_of_alarms(0.05, 150, start=-0.15, rise=0.15)
    assert alarms <= 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5
    rng = np.random.default_rng(2)
    answer = found(simulated(rng, 64, start=-0.15, rise=0.15), simulated(rng, 300))
    assert answer.levels["encoder"].p_rise <= ALPHA
    assert not answer.relearned


def test_forgetting_on_is_no_relearning() -> None:
    rng = np.random.default_rng(3)
    answer = found(simulated(rng, 64, rise=-0.1), simulated(rng, 300))
    assert answer.p == 1
    assert not answer.relearned


def test_power_grows_with_the_samples() -> None:
    rng = np.random.default_rng(4)
    shares = []
    for n in (8, 32, 128):
        runs = [
            found(simulated(rng, n, rise=0.03), simulated(rng, 256), 1999).relearned
            for _ in range(20)
        ]
        shares.append(np.mean(runs))
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < shares[-1]


def test_p_values_are_those_of_every_relabelling() -> None:
    """Against all 12,870 ways to share 16 samples out."""
    rng = np.random.default_rng(5)
    own, control = simulated(rng, 8, rise=0.02), simulated(rng, 8)
    answer = found(own, control, 20_000).levels["encoder"]
    for values, p in (
        (np.concatenate([-own.scores, -control.scores]), answer.p_rise),
        (np.concatenate([own.after.aligned, control.after.aligned]), answer.p_excess),
    ):
        sums = [values[list(each)].sum() for each in itertools.combinations(range(16), 8)]
        exact = np.mean(np.array(sums) >= values[:8].sum() - 1e-9)
        assert p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 20_000) ** 0.5 + 1e-4)


@pytest.mark.parametrize(("n", "m"), [(300, 20), (20, 300)])
def test_either_group_may_be_the_smaller_one(n: int, m: int) -> None:
    rng = np.random.default_rng(6)
    assert found(simulated(rng, n, rise=0.08), simulated(rng, m)).relearned
    assert not found(simulated(rng, n), simulated(rng, m)).relearned


@pytest.mark.parametrize(("n", "m"), [(7, 100), (100, 7)])
def test_too_few_samples_are_not_tested(n: int, m: int) -> None:
    rng = np.random.default_rng(7)
    group = {"encoder": simulated(rng, n, rise=1)}
    other: dict[Level, Outputs] = {"encoder": simulated(rng, m)}
    assert relearning(group, other) is None  # type: ignore[arg-type]


def test_looking_at_two_levels_costs_twice() -> None:
    rng = np.random.default_rng(8)
    own, control = simulated(rng, 16, rise=0.02), simulated(rng, 40)
    quiet = (simulated(rng, 16), simulated(rng, 40))
    both = relearning(
        {"encoder": own, "projector": quiet[0]}, {"encoder": control, "projector": quiet[1]}
    )
    assert both is not None
    assert both.level == "encoder"
    assert both.p == pytest.approx(2 * found(own, control).p)


def test_the_same_encoder_twice_raises_nothing_and_repeats_agree() -> None:
    rng = np.random.default_rng(9)
    level = 0.7 + rng.normal(0, SPREAD, 20)
    still = outputs(level, level)
    control = outputs(level - 0.1, level - 0.1)
    answer = found(still, control)
    assert (answer.p, answer.levels["encoder"].effect_size) == (1, 0)
    assert answer.to_dict() == found(still, control).to_dict()


def test_a_kind_that_a_later_encoder_treats_otherwise_is_no_relearning() -> None:
    """An owner of one kind of image only; another kind of owner would call nearly all of them relearned."""
    rng = np.random.default_rng(10)
    alarms = plain_alarms = 0
    for _ in range(100):
        kinds = np.repeat([0.0, 1.0], [40, 100])
        before = 0.7 + rng.normal(0, SPREAD, 140) + 0.1 * (kinds == 0)
        after = before + rng.normal(0, NOISE, 140) + 0.1 * (kinds == 0)
        mine, rest = np.arange(12), np.arange(12, 140)
        for told in (kinds, None):
            own, control = (
                outputs(before[part], after[part], None if told is None else told[part])
                for part in (mine, rest)
            )
            alarm = found(own, control, 199).p <= 0.05
            alarms += alarm and told is not None
            plain_alarms += alarm and told is None
    assert alarms <= 5 + 3 * (100 * 0.05 * 0.95) ** 0.5
    assert plain_alarms > 90


def test_a_return_is_found_among_images_of_its_kind() -> None:
    rng = np.random.default_rng(11)
    kinds = np.repeat([0.0, 1.0], [80, 100])
    before = 0.7 + rng.normal(0, SPREAD, 180)
    after = before + rng.normal(0, NOISE, 180) + 0.08 * (np.arange(180) < 24)
    own, control = (
        outputs(before[part], after[part], kinds[part]) for part in (slice(24), slice(24, 180))
    )
    assert found(own, control).relearned


def test_a_thousand_tests_may_raise_one_false_alarm() -> None:
    assert expected_false_alarms(1000) == pytest.approx(1)
