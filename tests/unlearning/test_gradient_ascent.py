"""Gradient ascent: its loss against a slow twin, and what a run does to the unlearn set."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unlearning.test_objectives import slow_row_losses, some_contrast

from expunge.unlearning.catalog import EncoderSpec, GradientAscentParams, PretrainParams
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.errors import NoNegativesError
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.methods.gradient_ascent import ascent_losses
from expunge.unlearning.training import TrainingResult, pretrain, unlearn

MakeImages = Callable[..., ImageSet]


def ascend(
    learner: Learner, retain: ImageSet, forget: ImageSet, params: GradientAscentParams
) -> TrainingResult:
    return unlearn(learner, retain, forget, "gradient_ascent", params, seed=0)


@pytest.mark.parametrize("framework", ["simclr", "moco"])
@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_the_loss_is_minus_the_slow_twin(framework: str, batch: int) -> None:
    rows = slow_row_losses(framework, batch)
    mean = sum(map(sum, rows)) / (len(rows) * batch)
    terms = ascent_losses(some_contrast(framework, batch, 0))
    assert float(terms["loss"]) == pytest.approx(-mean, rel=1e-12, abs=1e-12)
    assert float(terms["unlearn"]) == pytest.approx(mean, rel=1e-12, abs=1e-12)


def test_retained_samples_are_never_shown(make_images: MakeImages, spec: EncoderSpec) -> None:
    learner = build(spec, seed=0)
    # A queue without rows would be filled with keys of retained samples.
    queue: Any = {"queue_init": "random"} if spec.framework == "moco" else {}
    params = GradientAscentParams(epochs=2, batch_size=4, learning_rate=0.01, **queue)
    runs = [ascend(learner, make_images(n, seed=n), make_images(9), params) for n in (3, 20)]
    assert runs[0].steps == runs[1].steps == 4
    pairs = zip(*(run.learner.state_dict().values() for run in runs), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize(("unlearn_size", "steps"), [(2, 1), (7, 1), (8, 1), (9, 1), (17, 2)])
def test_an_unlearn_set_smaller_than_a_batch_is_used_whole(
    make_images: MakeImages, simclr_spec: EncoderSpec, unlearn_size: int, steps: int
) -> None:
    params = GradientAscentParams(epochs=1, batch_size=8)
    forget = make_images(unlearn_size, seed=1)
    assert ascend(build(simclr_spec, seed=0), make_images(8), forget, params).steps == steps


def test_a_single_sample_is_refused_where_its_loss_is_constant(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    with pytest.raises(NoNegativesError, match="gradient_ascent would change nothing"):
        ascend(
            build(simclr_spec, seed=0),
            make_images(8),
            make_images(1, seed=1),
            GradientAscentParams(),
        )


def test_a_single_sample_is_told_from_the_queue_of_moco(
    make_images: MakeImages, moco_spec: EncoderSpec
) -> None:
    images = make_images(24)
    learner = pretrain(moco_spec, images, PretrainParams(epochs=2, batch_size=8), seed=0).learner
    params = GradientAscentParams(epochs=1, learning_rate=0.01, weight_decay=0)
    result = ascend(learner, images.subset(range(23)), images.subset([23]), params)
    assert result.history[0]["unlearn"] > 0
    pairs = zip(result.learner.encoder.parameters(), learner.encoder.parameters(), strict=True)
    assert not all(torch.equal(after, before) for after, before in pairs)


def test_weight_decay_still_shrinks_the_weights(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    """One step with decay differs from one without by -lr * decay * w, and by nothing else."""
    learner = build(simclr_spec, seed=0)
    retain, forget = make_images(4), make_images(6, seed=1)
    rate, decay = 0.01, 0.5
    with_decay, without = (
        ascend(
            learner,
            retain,
            forget,
            GradientAscentParams(epochs=1, learning_rate=rate, weight_decay=value),
        ).learner
        for value in (decay, 0.0)
    )
    for before, shrunk, plain in zip(
        learner.parameters(), with_decay.parameters(), without.parameters(), strict=True
    ):
        assert not torch.equal(plain, before) or not before.any()
        torch.testing.assert_close(shrunk - plain, -rate * decay * before, rtol=1e-3, atol=1e-6)
