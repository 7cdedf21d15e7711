"""Weights of the epoch that a score prefers."""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.progress import TrainingResult
from expunge.unlearning.training import Score, unlearn

MakeImages = Callable[..., ImageSet]


class Judge:
    """Gives out the given scores one after another and keeps the weights it was shown."""

    def __init__(self, scores: Iterable[float]) -> None:
        self.scores: Iterator[float] = iter(scores)
        self.shown: list[dict[str, Tensor]] = []

    def __call__(self, learner: Learner) -> float:
        self.shown.append({name: t.clone() for name, t in learner.state_dict().items()})
        return next(self.scores)


@pytest.fixture
def forget(make_images: MakeImages, moco_spec: EncoderSpec) -> Callable[..., TrainingResult]:
    """Four epochs of Alignment Calibration, with a score or without."""

    def run(score: Score | None = None) -> TrainingResult:
        params = {"epochs": 4, "batch_size": 8, "learning_rate": 0.02}
        retain, unlearned = make_images(12), make_images(4, seed=1)
        learner = build(moco_spec, seed=0)
        method = "alignment_calibration"
        return unlearn(learner, retain, unlearned, method, params, seed=0, score=score)

    return run


def without_queue(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Purged of unlearn samples only after the last step."""
    return {name: value for name, value in state.items() if not name.startswith("queue")}


def assert_weights(result: TrainingResult, expected: dict[str, Tensor]) -> None:
    kept = without_queue(result.learner.state_dict())
    assert kept.keys() == without_queue(expected).keys()
    assert all(torch.equal(value, expected[name]) for name, value in kept.items())


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([3.0, 1.0, 2.0, 4.0], 2),
        ([4.0, 3.0, 2.0, 1.0], 4),
        ([1.0, 2.0, 3.0, 4.0], 1),
        ([2.0, 1.0, 1.0, 2.0], 2),
        ([math.nan, 3.0, math.nan, 2.0], 4),
        ([2.0, math.nan, math.nan, math.nan], 1),
        ([math.inf, math.nan, -math.inf, 0.0], 3),
    ],
)
def test_the_epoch_with_the_lowest_score_is_returned(
    forget: Callable[..., TrainingResult], scores: list[float], best: int
) -> None:
    judge = Judge(scores)
    result = forget(judge)
    assert result.best_epoch == best
    assert result.scores == pytest.approx(scores, nan_ok=True)
    assert_weights(result, judge.shown[best - 1])
    assert len(result.history) == 4


def test_the_last_weights_are_returned_where_no_score_is_a_number(
    forget: Callable[..., TrainingResult],
) -> None:
    judge = Judge([math.nan] * 4)
    result = forget(judge)
    assert result.best_epoch is None
    assert_weights(result, judge.shown[-1])


def test_without_a_score_the_last_weights_are_returned(
    forget: Callable[..., TrainingResult],
) -> None:
    judge = Judge([4.0, 3.0, 2.0, 1.0])
    result = forget()
    assert (result.best_epoch, result.scores) == (None, [])
    assert_weights(result, forget(judge).learner.state_dict())


def test_scoring_does_not_change_the_run(forget: Callable[..., TrainingResult]) -> None:
    """Though the score draws at random and leaves the learner in eval mode."""

    def careless(learner: Learner) -> float:
        learner.eval()
        return -float(torch.rand(100).sum())

    plain, scored = forget(), forget(careless)
    assert scored.history == plain.history
    assert len(set(scored.scores)) == 1


def test_the_queue_of_the_best_epoch_is_purged(
    make_images: MakeImages, forget: Callable[..., TrainingResult]
) -> None:
    judge = Judge([1.0, 2.0, 3.0, 4.0])
    result = forget(judge)
    unlearned = make_images(4, seed=1).ids
    assert torch.isin(judge.shown[0]["queue_ids"], unlearned).any()
    assert not torch.isin(result.learner.queue_ids, unlearned).any()


def test_time_spent_on_scores_is_left_out(forget: Callable[..., TrainingResult]) -> None:
    def slow(learner: Learner) -> float:
        del learner
        time.sleep(0.5)
        return 0.0

    started = time.perf_counter()
    result = forget(slow)
    assert result.seconds < time.perf_counter() - started - 4 * 0.5 + 1e-3
