import copy
from collections.abc import Callable
from typing import Any

import pytest

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.comparison import compare, to_csv, to_markdown
from expunge.unlearning.comparison.relearning import (
    RELEARN_CAP,
    epochs_until,
    loss_level,
    relearn_epochs,
)
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import MoCo, build
from expunge.unlearning.training import pretrain

MakeImages = Callable[..., ImageSet]


@pytest.mark.parametrize(
    ("losses", "level", "epochs"),
    [([3, 2, 1], [1, 1, 1], 2), ([1, 9, 9], [1, 1, 1], 0), ([3, 2, 2], [1, 1, 1], None)],
)
def test_epochs_are_counted_up_to_the_first_that_is_as_low(
    losses: list[float], level: list[float], epochs: int | None
) -> None:
    assert epochs_until(losses, level) == epochs


def test_an_encoder_that_forgot_nothing_relearns_at_once(
    make_images: MakeImages, spec: EncoderSpec
) -> None:
    """Held against itself in the first epoch, before its weights have moved much."""
    images = make_images(8)
    learner = pretrain(spec, images, {"epochs": 20, "batch_size": 8}, seed=0).learner
    level = loss_level(learner, images, seed=1, device="cpu")
    assert len(level.losses) == RELEARN_CAP + 1
    # One batch an epoch: the first loss is that of weights that have not moved.
    assert relearn_epochs(learner, images, level, seed=1, device="cpu") == 0


def test_a_fresh_encoder_takes_longer_to_relearn_than_a_trained_one(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    images = make_images(24)
    params = {"epochs": 60, "batch_size": 24, "learning_rate": 0.1}
    trained = pretrain(simclr_spec, images, params, seed=0).learner
    level = loss_level(trained, images, seed=1, device="cpu")
    fresh = relearn_epochs(build(simclr_spec, seed=2), images, level, seed=1, device="cpu")
    assert fresh is None or fresh >= 2
    assert relearn_epochs(trained, images, level, seed=1, device="cpu") == 0


def test_what_a_queue_was_left_with_plays_no_part(
    make_images: MakeImages, moco_spec: EncoderSpec
) -> None:
    """More negatives mean a higher loss, which would look like something to relearn."""
    images = make_images(8)
    learner = pretrain(moco_spec, images, {"epochs": 20, "batch_size": 8}, seed=0).learner
    assert isinstance(learner, MoCo)
    fuller = copy.deepcopy(learner)
    fuller.scramble_queue()
    level = loss_level(learner, images, seed=1, device="cpu")
    assert loss_level(fuller, images, seed=1, device="cpu") == level
    assert relearn_epochs(fuller, images, level, seed=1, device="cpu") == 0


def test_a_comparison_reports_relearn_times_of_methods_and_retrain(case: Any) -> None:
    result = compare(
        case.learner, *case.sets, case.candidates[:1], retrain=case.retrain, relearn=True
    )
    before, retrain, candidate = result.rows
    assert before.relearning is None
    for row in (retrain, candidate):
        assert row.relearning is not None
        assert (row.relearning.cap, row.relearning.seeds) == (RELEARN_CAP, [0])
        assert row.relearning.epochs[0] in {None, *range(RELEARN_CAP + 1)}
    assert "Relearn (epochs)" in to_markdown(result)
    assert "relearn_epochs" in to_csv(result)
