import numpy as np
import pytest
from tests.evidence.simulated import names, reference, simulated

from expunge.evidence.audit import AuditReport, NullQuantiles, audit, bounds_of_all, place, placing
from expunge.evidence.audit.permutation import distinct
from expunge.evidence.audit.placing import PERCENTILES, null_quantiles, pair_means

KEPT = reference(200, np.random.default_rng(1000))


def at_home(n: int, seed: int, forgotten: float = 0.0) -> AuditReport:
    own = {"encoder": simulated(n, np.random.default_rng(seed), forgotten=forgotten)}
    return audit(own, names(n))


def quantiles(n: int) -> NullQuantiles:
    found = null_quantiles(KEPT, n, 0)
    assert found is not None
    return found


def test_quantiles_are_those_of_means_of_retained_samples() -> None:
    rng, scores = np.random.default_rng(1), KEPT.levels["encoder"].scores
    means = np.array([rng.permutation(scores)[:4].mean() for _ in range(5000)])
    widened = means.mean() + (means - means.mean()) * np.sqrt(204 / 196)
    ours = quantiles(4).levels["encoder"]["forgetting_score"]
    np.testing.assert_allclose(ours, np.percentile(widened, PERCENTILES), atol=0.1 * scores.std())


@pytest.mark.parametrize("size", [2, 5, 40])
def test_means_of_pairs_equal_the_loop_over_pairs(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(60, 60)).astype(np.float32)
    matrix += matrix.T
    draws = distinct(size, 60, rng, 20)
    slow = [np.mean([matrix[i, j] for i in d for j in d if i != j]) for d in draws.tolist()]
    np.testing.assert_allclose(pair_means(matrix, draws), slow, atol=1e-5)
    monkeypatch.setattr(placing, "CHUNK_NUMBERS", 100)
    np.testing.assert_allclose(pair_means(matrix, draws), slow, atol=1e-5)


def test_the_middle_of_the_draws_is_no_evidence_and_beyond_them_is_strong() -> None:
    null = quantiles(8)
    assert null.levels["encoder"]["forgetting_score"] == sorted(
        null.levels["encoder"]["forgetting_score"]
    )
    gone = place(at_home(8, 0, forgotten=0.8), null)["encoder"]["forgetting_score"]
    assert gone == [0, 0.005], "as people read it, not 0.0050000000000000044"
    low, high = place(at_home(8, 0), null)["encoder"]["forgetting_score"]
    assert high > 0.05
    assert low < high


@pytest.mark.parametrize("n", [1, 8, 40])
def test_placed_untouched_samples_are_extreme_as_rarely_as_they_should(n: int) -> None:
    null, trials = quantiles(n), 80
    for name in null.levels["encoder"]:
        upper = [place(at_home(n, seed), null)["encoder"][name][1] for seed in range(trials)]
        assert np.mean(np.array(upper) <= 0.05 + 1e-9) < 0.05 + 0.08


def test_bounds_for_all_looks_together_pay_for_their_number() -> None:
    places = {"encoder": {"a": [0.01, 0.025], "b": [0.25, 0.5]}}
    assert bounds_of_all(places) == [0.02, 0.05]


def test_single_samples_are_averaged_before_their_quantiles_are_told() -> None:
    scores = np.sort(KEPT.levels["encoder"].scores)
    told = quantiles(1).levels["encoder"]
    assert list(told) == ["forgetting_score"]
    values = np.array(told["forgetting_score"])
    assert values[-1] < scores[-1]
    assert values[0] > scores[0]
    assert np.abs(values[:, None] - scores).min() > 0


def test_half_the_retained_samples_and_more_have_no_quantiles() -> None:
    assert null_quantiles(KEPT, 101, 0) is None


def test_quantiles_for_another_number_of_samples_do_not_place() -> None:
    with pytest.raises(ValueError, match="for 8 samples cannot place 4"):
        place(at_home(4, 0), quantiles(8))
