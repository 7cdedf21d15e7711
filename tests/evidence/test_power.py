import numpy as np
import pytest
from tests.evidence.simulated import KINDS, Kinds, names, reference, simulated

from expunge.evidence.audit import Reference, audit
from expunge.evidence.audit.looks import Pool
from expunge.evidence.audit.permutation import Outcome, permute, plain_draws
from expunge.evidence.audit.power import Effect, membership, power_against_retrain, retrain_effect

KEPT = reference(200, np.random.default_rng(1000))
LOST = 0.15
UNSEEN = reference(400, np.random.default_rng(1001), forgotten=LOST)


def outcome(n: int, seed: int, forgotten: float = 0.0) -> Outcome:
    rng = np.random.default_rng(seed)
    own = simulated(n, rng, forgotten=forgotten)
    pool = Pool.of(own, KEPT.levels["encoder"])
    return permute({"encoder": pool}, plain_draws(n, 200, rng, 999))


def test_the_effect_of_a_retrain_is_how_much_better_kept_samples_are_aligned() -> None:
    effect = retrain_effect(KEPT, UNSEEN)["encoder"]
    kept, unseen = KEPT.levels["encoder"].after, UNSEEN.levels["encoder"].after
    assert effect.mean == pytest.approx(kept.aligned.mean() - unseen.aligned.mean())
    assert effect.mean > 0
    between = unseen.against(kept).mean()
    among = KEPT.levels["encoder"].matrices[1]
    others = (among.sum() - np.trace(among)) / (200 * 199)
    assert effect.drawn == pytest.approx(between - others, abs=1e-6)
    assert effect.std == pytest.approx(0.6 * unseen.aligned.std())


@pytest.mark.parametrize("n", [4, 12])
def test_the_stated_power_is_how_often_such_an_effect_is_found(n: int) -> None:
    effect = retrain_effect(KEPT, UNSEEN)
    stated = power_against_retrain(outcome(n, 0), n, effect).power
    trials = 80
    found = np.mean([outcome(n, seed, LOST).p <= 0.01 for seed in range(trials)])
    assert stated == pytest.approx(found, abs=0.2)


def test_so_many_samples_as_are_called_for_have_the_power() -> None:
    few = power_against_retrain(outcome(3, 0), 3, retrain_effect(KEPT, UNSEEN))
    assert few.power < few.target
    assert few.samples_needed is not None
    enough = power_against_retrain(
        outcome(few.samples_needed, 0), few.samples_needed, retrain_effect(KEPT, UNSEEN)
    )
    assert enough.power >= few.target - 0.05


def test_an_effect_that_varies_from_sample_to_sample_is_found_less_often() -> None:
    found = [
        power_against_retrain(outcome(8, 0), 8, {"encoder": Effect(0.3, std)}).power
        for std in (0.0, 0.3, 1.0)
    ]
    assert found[0] > found[1] > found[2]


def test_samples_that_a_retrain_draws_towards_all_others_are_found_more_often() -> None:
    found = [
        power_against_retrain(outcome(8, 0), 8, {"encoder": Effect(0.02, 0.0, drawn)}).power
        for drawn in (-0.1, 0.0, 0.002, 0.004)
    ]
    assert found[0] == found[1] < found[2] < found[3]


def test_where_a_retrain_moves_nothing_no_number_is_named() -> None:
    none = power_against_retrain(outcome(8, 0), 8, {"encoder": Effect(-0.01, 0.0)})
    assert none.power < 0.02
    assert none.samples_needed is None


def test_where_no_draw_is_rare_enough_there_is_no_power() -> None:
    pool = Pool.of(simulated(1, np.random.default_rng(0)), KEPT.levels["encoder"])
    few = permute({"encoder": pool}, np.arange(50)[:, None])
    assert power_against_retrain(few, 1, {"encoder": Effect(1.0, 0.0)}).power == 0


def test_membership_is_told_by_self_alignment_after() -> None:
    rng = np.random.default_rng(0)
    still, gone = simulated(12, rng), simulated(12, rng, forgotten=LOST)
    control = reference(300, rng, forgotten=LOST)
    known = membership({"encoder": still}, control, rng)
    assert known.p <= 0.01
    assert known.difference["encoder"] > 0
    assert membership({"encoder": gone}, control, rng).p > 0.05


@pytest.mark.parametrize("n", [8, 32])
def test_samples_of_one_kind_that_nobody_trained_on_leave_no_trace(n: int) -> None:
    """Views of some kinds are more alike than those of others, to any encoder."""
    found = {0.0: 0, -0.2: 0}
    for known in found:
        for seed in range(20):
            rng = np.random.default_rng(seed)
            kinds = Kinds(rng)
            control = Reference({"encoder": kinds.draw(256, np.arange(KINDS))})
            own = kinds.draw(n, np.array([rng.integers(KINDS)]), forgotten=known)
            found[known] += membership({"encoder": own}, control, rng).p <= 0.01
    assert found[0.0] <= 2
    assert found[-0.2] >= 13


def test_a_report_has_the_power_and_the_membership_of_its_own_samples() -> None:
    own = {"encoder": simulated(12, np.random.default_rng(0))}
    report = audit(own, names(12), KEPT, UNSEEN)
    assert report.power is not None
    assert report.membership is not None
    assert report.power.effect == {"encoder": retrain_effect(KEPT, UNSEEN)["encoder"].mean}
    after = own["encoder"].after.aligned.mean() - UNSEEN.levels["encoder"].after.aligned.mean()
    assert report.membership.difference["encoder"] == pytest.approx(after)
