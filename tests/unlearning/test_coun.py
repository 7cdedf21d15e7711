"""CoUn: its loss from retained samples alone, and the views it asks for."""

from collections.abc import Callable

import pytest
import torch
from tests.unlearning.test_objectives import slow_nt_xent

from expunge.unlearning.catalog import CoUnParams, EncoderSpec, MethodNotForFramework
from expunge.unlearning.data.batches import StepIndices
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.source import Source
from expunge.unlearning.frameworks import build
from expunge.unlearning.methods.base import Batch, SetSizes
from expunge.unlearning.methods.coun import CoUn
from expunge.unlearning.training import unlearn

MakeImages = Callable[..., ImageSet]
NONE = torch.empty(0, dtype=torch.int64)


def views(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_loss_is_cross_entropy_of_first_views_plus_nt_xent_of_both(
    supervised_spec: EncoderSpec, count: int, weight: float
) -> None:
    learner = build(supervised_spec, seed=0).eval()
    first, other, labels = views(count, 1), views(count, 2), torch.arange(count) % 3
    batch = Batch(first, labels, torch.arange(count), count, 0, other=other)
    params = CoUnParams(contrast_weight=weight, temperature=0.3)
    terms = CoUn(params).losses(learner, batch, SetSizes(count, 1))
    with torch.no_grad():
        z1, z2 = (
            torch.nn.functional.normalize(learner.features(x), dim=1).double()
            for x in (first, other)
        )
        probabilities = learner.classifier(learner.features(first)).softmax(1)
    alignment, partition = slow_nt_xent(z1, z2, 0.3)
    pairs = [
        p - a for r, s in zip(alignment, partition, strict=True) for a, p in zip(r, s, strict=True)
    ]
    surprises = [-float(probabilities[i, labels[i]].log()) for i in range(count)]
    expected = sum(surprises) / count + weight * sum(pairs) / len(pairs)
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_it_is_refused_for_encoders_without_a_classifier_and_without_other_views(
    simclr_spec: EncoderSpec, supervised_spec: EncoderSpec
) -> None:
    batch = Batch(views(2, 1), torch.zeros(2, dtype=torch.int64), torch.arange(2), 2, 0)
    with pytest.raises(MethodNotForFramework, match="for: supervised"):
        CoUn(CoUnParams()).losses(build(simclr_spec, seed=0), batch, SetSizes(2, 1))
    with pytest.raises(ValueError, match="other views"):
        CoUn(CoUnParams()).losses(build(supervised_spec, seed=0), batch, SetSizes(2, 1))


def test_other_views_show_the_retained_samples_anew_and_change_no_other_view(
    make_images: MakeImages, supervised_spec: EncoderSpec, simclr_spec: EncoderSpec
) -> None:
    images = make_images(10)
    indices = StepIndices(torch.tensor([3, 1, 5]), torch.tensor([0, 2]), torch.tensor([0, 2]))
    for spec in (supervised_spec, simclr_spec):
        with_other, without = (
            Source(images, 7, spec, seed=4, third_view=True, other_view=asked).batch(indices, 2, 0)
            for asked in (True, False)
        )
        assert without.other is None
        assert with_other.other is not None
        assert with_other.other.shape == (3, 3, 16, 16)
        for name in ("first", "second", "third"):
            assert torch.equal(getattr(with_other, name), getattr(without, name))
        assert not torch.equal(with_other.other, with_other.first[:3])
        if spec is simclr_spec:
            assert not torch.equal(with_other.other, with_other.second[:3])


def test_unlearn_samples_play_no_part(
    make_images: MakeImages, supervised_spec: EncoderSpec
) -> None:
    learner = build(supervised_spec, seed=0)
    runs = [
        unlearn(learner, make_images(12), make_images(4, seed=seed), "coun", {"epochs": 1}, seed=0)
        for seed in (1, 2)
    ]
    for one, two in zip(*(run.learner.parameters() for run in runs), strict=True):
        assert torch.equal(one, two)


def test_no_other_views_are_made_where_no_retained_sample_is(
    make_images: MakeImages, supervised_spec: EncoderSpec
) -> None:
    source = Source(make_images(3), 0, supervised_spec, seed=0, third_view=False)
    batch = source.batch(StepIndices(NONE, torch.tensor([1]), torch.tensor([1])), 0, 0)
    assert (batch.retain, batch.other) == (0, None)
