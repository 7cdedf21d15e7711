import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from tests.evidence.simulated import simulated, unit

from expunge.evidence.audit import Outputs
from expunge.evidence.audit.bootstrap import Resamples, interval

CONFIDENCE = 0.9


def drawn(weights: NDArray[np.float64]) -> list[int]:
    """The samples that weights stand for."""
    return [int(i) for i in np.repeat(np.arange(len(weights)), weights.astype(int))]


def captioned(n: int) -> Outputs:
    rng = np.random.default_rng(0)
    images, captions = (unit(rng.normal(size=shape)) for shape in ((3, n, 8), (n, 8)))
    return Outputs.of(images, images, captions=(captions, captions))


def slow_mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def test_resampled_alignment_equals_the_loop_over_drawn_samples_and_pairs() -> None:
    outputs = simulated(4, np.random.default_rng(0), views=3)
    side, resamples = outputs.before, Resamples.draw(outputs, np.random.default_rng(1), 15)
    own = resamples.self_alignment(side)
    others = resamples.negative_alignment(side, outputs.chosen)
    assert drawn(resamples.samples[0]) == [0, 1, 2, 3]
    for b in range(16):
        samples = drawn(resamples.samples[b])
        for column, (v, w) in enumerate([(0, 1), (0, 2), (1, 2)]):
            f, g = side.views[v].astype(float), side.views[w].astype(float)
            same = slow_mean([f[i] @ g[i] for i in samples])
            assert own[b, column] == pytest.approx(same, abs=1e-6)
            far = slow_mean([f[i] @ g[j] for i in samples for j in samples if i != j])
            assert others[b, column] == pytest.approx(far, nan_ok=True, abs=1e-6)


def test_images_and_captions_are_resampled_as_pairs_of_samples() -> None:
    outputs = captioned(4)
    side, resamples = outputs.before, Resamples.draw(outputs, np.random.default_rng(1), 15)
    texts = side.captions
    assert texts is not None
    own = resamples.self_alignment(side)
    others = resamples.negative_alignment(side, outputs.chosen)
    for b in range(16):
        samples = drawn(resamples.samples[b])
        for v, f in enumerate(side.views):
            paired = slow_mean([float(f[i] @ texts[i]) for i in samples])
            assert own[b, v] == pytest.approx(paired, abs=1e-6)
            far = slow_mean([float(f[i] @ texts[j]) for i in samples for j in samples if i != j])
            assert others[b, v] == pytest.approx(far, nan_ok=True, abs=1e-6)


def test_where_views_share_nothing_the_standard_error_is_that_of_a_mean() -> None:
    outputs = simulated(30, np.random.default_rng(0), views=10)
    resamples = Resamples.draw(outputs, np.random.default_rng(1), 5000)
    means = resamples.self_alignment(outputs.before)
    error = resamples.standard_error(means, outputs.before, 30)
    assert error == pytest.approx(outputs.before.aligned.std(ddof=1) / np.sqrt(30), rel=0.15)


def test_intervals_are_students() -> None:
    low, high = interval(1.0, 0.5, 30, 0.95)
    assert (low + high) / 2 == pytest.approx(1.0)
    assert high - low == pytest.approx(2.0452, rel=1e-4)


@pytest.mark.parametrize("shared", [0.0, 0.8], ids=["own views", "shared views"])
@pytest.mark.parametrize("n", [8, 40])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int, shared: float) -> None:
    """Truth: the mean over all trials, whose samples and views are of one distribution."""
    trials = 120
    scores, changes = [], []
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        outputs = simulated(n, rng, views=8, forgotten=0.3, shared=shared)
        resamples = Resamples.draw(outputs, rng, 150)
        sides = (outputs.before, outputs.after)
        own = [resamples.self_alignment(side) for side in sides]
        others = [resamples.negative_alignment(side, outputs.chosen) for side in sides]
        for found, means in ((scores, own[0] - own[1]), (changes, others[1] - others[0])):
            error = resamples.standard_error(means, outputs.before, n)
            found.append(interval(float(means[0].mean()), error, n, CONFIDENCE))
    covered = []
    for found in (scores, changes):
        intervals = np.array(found)
        truth = intervals.mean()
        covered.append(int(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).sum()))
    fewest, most = binom.interval(0.998, trials, CONFIDENCE)
    assert fewest <= covered[0] <= most
    # Different samples of one kind have nothing in common here: the case in which resampling
    # overestimates how much a mean of pairs varies.
    assert fewest <= covered[1]
