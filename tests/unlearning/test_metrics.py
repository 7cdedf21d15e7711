import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.unlearning.metrics.alignment import (
    alignment_matrix,
    off_diagonal,
    self_alignment,
)
from expunge.unlearning.metrics.bootstrap import (
    percentile_interval,
    resampled_means,
    resampled_pair_means,
    resampling_weights,
)


def outputs(views: int, samples: int, seed: int = 0) -> NDArray[np.float64]:
    raw = np.random.default_rng(seed).normal(size=(views, samples, 5))
    normalised: NDArray[np.float64] = raw / np.linalg.norm(raw, axis=2, keepdims=True)
    return normalised


@pytest.mark.parametrize("views", [2, 3, 10])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_alignment_matrix_equals_the_loop_over_pairs_of_views(views: int, samples: int) -> None:
    f = outputs(views, samples)
    slow = np.zeros((samples, samples))
    for i in range(samples):
        for j in range(samples):
            pairs = [float(f[v, i] @ f[w, j]) for v in range(views) for w in range(views) if v != w]
            slow[i, j] = sum(pairs) / len(pairs)
    np.testing.assert_allclose(alignment_matrix(f), slow, atol=1e-12)


def test_two_views_give_the_papers_matrix_made_symmetric() -> None:
    f = outputs(2, 6)
    paper = f[0] @ f[1].T
    np.testing.assert_allclose(alignment_matrix(f), (paper + paper.T) / 2)


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two views"):
        alignment_matrix(outputs(1, 3))


def test_forgetting_score_is_the_loss_of_similarity_between_views_of_a_sample() -> None:
    before, after = outputs(4, 5, 1), outputs(4, 5, 2)
    scores = self_alignment(before.sum(0), 4) - self_alignment(after.sum(0), 4)
    for i in range(5):
        losses = [
            before[v, i] @ before[w, i] - after[v, i] @ after[w, i]
            for v in range(4)
            for w in range(v)
        ]
        assert scores[i] == pytest.approx(np.mean(losses))


def test_self_alignment_is_the_diagonal_of_the_matrix() -> None:
    f = outputs(6, 8)
    diagonal = np.diagonal(alignment_matrix(f))
    np.testing.assert_allclose(self_alignment(f.sum(0), 6), diagonal, atol=1e-12)
    with pytest.raises(ValueError, match="at least two views"):
        self_alignment(f[0], 1)


def test_negative_alignment_leaves_the_diagonal_out() -> None:
    assert off_diagonal(np.array([[9.0, 1.0], [2.0, 9.0]])).tolist() == [1.0, 2.0]


def test_resampled_pair_means_equal_the_loop_over_drawn_pairs() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 4))
    matrix += matrix.T
    weights = resampling_weights(4, 20, rng)
    for weight, ours in zip(weights, resampled_pair_means(matrix, weights), strict=True):
        drawn = np.repeat(np.arange(4), weight.astype(int))
        pairs = [matrix[i, j] for i in drawn for j in drawn if i != j]
        assert ours == pytest.approx(np.mean(pairs), nan_ok=True)


def test_intervals_of_means_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    trials = 300
    covered = 0
    for _ in range(trials):
        values = rng.normal(size=40)
        draws = resampled_means(values, resampling_weights(40, 400, rng))
        low, high = percentile_interval(draws, 0.95)
        covered += low <= 0 <= high
    assert 0.90 <= covered / trials <= 0.985


def test_intervals_of_pair_means_cover_the_truth_although_pairs_share_samples() -> None:
    """Entries a_i + a_j: as dependent as they come. Resampling pairs would cover far too rarely."""
    rng = np.random.default_rng(2)
    trials = 300
    covered = 0
    for _ in range(trials):
        effects = rng.normal(size=30)
        matrix = effects[:, None] + effects[None, :]
        draws = resampled_pair_means(matrix, resampling_weights(30, 400, rng))
        low, high = percentile_interval(draws, 0.95)
        covered += low <= 0 <= high
    assert 0.90 <= covered / trials <= 0.985
