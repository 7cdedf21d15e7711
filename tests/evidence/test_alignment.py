import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.evidence.audit.alignment import (
    alignment_matrix,
    caption_alignment,
    caption_cosines,
    cross_alignment,
    off_diagonal,
    self_alignment,
    view_cosines,
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


@pytest.mark.parametrize("views", [2, 5])
def test_alignment_with_other_samples_leaves_equal_view_numbers_out(views: int) -> None:
    f, g = outputs(views, 3), outputs(views, 4, seed=1)
    slow = np.zeros((3, 4))
    for i in range(3):
        for j in range(4):
            pairs = [float(f[v, i] @ g[w, j]) for v in range(views) for w in range(views) if v != w]
            slow[i, j] = sum(pairs) / len(pairs)
    np.testing.assert_allclose(cross_alignment(f, g), slow, atol=1e-12)


def test_cosines_of_views_are_those_of_each_pair() -> None:
    f = outputs(4, 3)
    slow = [[f[v, i] @ f[w, i] for v in range(4) for w in range(v + 1, 4)] for i in range(3)]
    np.testing.assert_allclose(view_cosines(f), slow, atol=1e-12)
    np.testing.assert_allclose(view_cosines(f).mean(1), np.diagonal(alignment_matrix(f)))


def test_images_are_held_against_captions_over_all_views() -> None:
    images, captions = outputs(3, 4), outputs(1, 4, seed=1)[0]
    slow = [[np.mean([v[i] @ captions[j] for v in images]) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(caption_alignment(images, captions), slow, atol=1e-12)
    own = caption_cosines(images, captions)
    assert own.shape == (4, 3)
    np.testing.assert_allclose(own.mean(1), np.diagonal(slow), atol=1e-12)
