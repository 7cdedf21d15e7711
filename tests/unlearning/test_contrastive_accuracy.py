from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.unlearning import catalog
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views, normalise
from expunge.unlearning.frameworks import CLIP, build
from expunge.unlearning.metrics import contrastive_accuracy as module
from expunge.unlearning.metrics.contrastive_accuracy import contrastive_accuracy, nearest_share

CPU = torch.device("cpu")
MakeImages = Callable[..., ImageSet]


def slow_share(anchors: Tensor, partners: Tensor) -> float:
    """One anchor and one partner at a time, as it is said in words."""
    right = 0
    for i, anchor in enumerate(anchors):
        own = float(F.cosine_similarity(anchor, partners[i], dim=0))
        others = [
            float(F.cosine_similarity(anchor, partner, dim=0))
            for j, partner in enumerate(partners)
            if j != i
        ]
        right += all(own > other for other in others)
    return right / len(anchors)


@pytest.mark.parametrize(("count", "noise"), [(1, 1.0), (2, 0.5), (30, 0.1), (30, 1.0), (30, 9.0)])
def test_the_share_equals_the_loop(
    count: int, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    generator = torch.Generator().manual_seed(count)
    anchors = torch.randn(count, 5, generator=generator)
    partners = anchors + noise * torch.randn(count, 5, generator=generator)
    assert nearest_share(anchors, partners) == pytest.approx(slow_share(anchors, partners))


def test_lengths_do_not_matter() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 0.1]])
    partners = torch.tensor([[0.01, 0.0], [50.0, 60.0]])
    assert nearest_share(anchors, partners) == 1.0
    assert nearest_share(anchors, partners.flip(0)) == 0.0


def test_an_encoder_that_maps_everything_to_a_point_tells_nothing_apart() -> None:
    assert nearest_share(torch.ones(4, 3), torch.ones(4, 3)) == 0.0
    assert nearest_share(torch.ones(1, 3), torch.ones(1, 3)) == 1.0


def test_views_are_compared_by_encoder_features(
    make_images: MakeImages, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_IMAGES", 7)
    images, learner = make_images(20), build(spec, seed=0).eval()
    make = Views(spec.image_size, spec.mean, spec.std, seed=5)
    with torch.no_grad():
        first, second = (learner.encoder(make(images.images, images.ids, view)) for view in (0, 1))
    found = contrastive_accuracy(learner, images, CPU, seed=5)
    assert found == pytest.approx(slow_share(first, second))
    assert found != contrastive_accuracy(learner, images, CPU, seed=6)


def test_the_learner_stays_as_it_was(make_images: MakeImages, spec: EncoderSpec) -> None:
    learner = build(spec, seed=0).train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    state = torch.get_rng_state()
    contrastive_accuracy(learner, make_images(5), CPU, seed=0)
    assert learner.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_clip_images_are_compared_with_their_first_captions(make_images: MakeImages) -> None:
    spec = EncoderSpec(objective=catalog.CLIP(context_length=16), image_size=16)
    texts = [f"picture number {i}\nanother line of {i}" for i in range(6)]
    images = replace(make_images(6), captions=tokenise(texts, 16))
    learner = build(spec, seed=0).eval()
    assert isinstance(learner, CLIP)
    with torch.no_grad():
        image = learner.projections(normalise(images.images, spec.mean, spec.std))
        text = learner.text_features(tokenise([each.splitlines()[0] for each in texts], 16).tokens)
    found = contrastive_accuracy(learner, images, CPU, seed=0)
    assert found == pytest.approx(slow_share(image, text))
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    assert contrastive_accuracy(learner, images.subset(order), CPU, seed=0) == pytest.approx(found)
    with pytest.raises(ValueError, match="caption"):
        contrastive_accuracy(learner, replace(images, captions=None), CPU, seed=0)


def test_nothing_cannot_be_told_apart(make_images: MakeImages, simclr_spec: EncoderSpec) -> None:
    with pytest.raises(ValueError, match="at least one"):
        contrastive_accuracy(build(simclr_spec, seed=0), make_images(0), CPU, seed=0)
