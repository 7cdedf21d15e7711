"""Every method on every framework it is offered for: one epoch each; the others are refused."""

from collections.abc import Callable

import pytest
import torch

from expunge.unlearning.catalog import (
    BYOL,
    CLIP,
    METHODS,
    Architecture,
    EncoderSpec,
    MethodNotForFramework,
    MoCo,
    SimCLR,
    Supervised,
)
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.errors import BatchStatisticsError, NoNegativesError
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.frameworks import MoCo as MoCoLearner
from expunge.unlearning.training import pretrain, unlearn

MakeImages = Callable[..., ImageSet]
SIZE = 16
CONTEXT = 6
SMALL = {"architecture": Architecture(width=4), "image_size": SIZE}
SPECS = {
    "simclr": EncoderSpec(objective=SimCLR(projector_hidden=16, projector_dim=8), **SMALL),
    "moco": EncoderSpec(objective=MoCo(projector_dim=8, queue_size=24), **SMALL),
    "byol": EncoderSpec(objective=BYOL(hidden=16, projector_dim=8), **SMALL),
    "supervised": EncoderSpec(objective=Supervised(classes=3), **SMALL),
    "clip": EncoderSpec(objective=CLIP(context_length=CONTEXT), image_size=SIZE),
}
FRAMEWORKS = sorted(SPECS)
ONE_STEP = {"epochs": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def learners() -> Callable[[str], Learner]:
    made: dict[str, Learner] = {}

    def learner(framework: str) -> Learner:
        if framework not in made:
            made[framework] = build(SPECS[framework], seed=0)
            if isinstance(made[framework], MoCoLearner):
                # Against an empty queue the loss is zero whatever the encoder.
                made[framework].scramble_queue()
        return made[framework]

    return learner


def captioned(images: ImageSet) -> ImageSet:
    texts = [f"a picture of {i}\nnumber {i}" for i in range(len(images))]
    return ImageSet(
        images.images, images.ids, images.keys, images.labels, captions=tokenise(texts, CONTEXT)
    )


@pytest.fixture
def sets(make_images: MakeImages) -> Callable[[str, int], tuple[ImageSet, ImageSet]]:
    def make(framework: str, unlearn_count: int) -> tuple[ImageSet, ImageSet]:
        both = make_images(12), make_images(unlearn_count, seed=1)
        return tuple(map(captioned, both)) if framework == "clip" else both

    return make


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("unlearn_count", [1, 4])
def test_it_runs_where_it_is_offered_and_is_refused_elsewhere(
    learners: Callable[[str], Learner],
    sets: Callable[[str, int], tuple[ImageSet, ImageSet]],
    method: str,
    framework: str,
    unlearn_count: int,
) -> None:
    given = learners(framework)
    retain, forget = sets(framework, unlearn_count)
    if framework not in METHODS[method].frameworks:
        with pytest.raises(MethodNotForFramework):
            unlearn(given, retain, forget, method, {}, seed=0)
        return
    if method == "gradient_ascent" and unlearn_count == 1 and framework in {"simclr", "clip"}:
        with pytest.raises(NoNegativesError):
            unlearn(given, retain, forget, method, ONE_STEP, seed=0)
        return
    before = weights(given)
    run = unlearn(given, retain, forget, method, ONE_STEP, seed=0)
    assert run.steps >= 1
    assert all(torch.tensor(value).isfinite() for value in run.history[0].values())
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    changed = dict(run.learner.named_parameters())
    assert all(value.isfinite().all() for value in changed.values())
    assert any(
        not torch.equal(before[name], value)
        for name, value in changed.items()
        if name.startswith("encoder.") and value.requires_grad
    )


@pytest.mark.parametrize("method", ["gradient_ascent", "neg_grad"])
def test_one_pixel_and_one_sample_end_with_a_reason_where_batch_norm_cannot_work(
    make_images: MakeImages, method: str
) -> None:
    """torchvision's ResNet-18 makes one pixel of 32; a mixed batch has more than one sample."""
    spec = EncoderSpec(
        objective=MoCo(projector_dim=8, queue_size=8), architecture=Architecture(name="resnet18")
    )
    sets = make_images(3, size=32), make_images(1, seed=1, size=32)
    if method == "gradient_ascent":
        with pytest.raises(BatchStatisticsError, match="a step of 1 image: the encoder shrinks"):
            unlearn(build(spec, seed=0), *sets, method, ONE_STEP, seed=0)
    else:
        assert unlearn(build(spec, seed=0), *sets, method, ONE_STEP, seed=0).steps == 1


def test_split_batch_norm_that_leaves_a_group_one_value_ends_with_a_reason(
    make_images: MakeImages,
) -> None:
    spec = EncoderSpec(
        objective=MoCo(projector_dim=8, queue_size=8, bn_splits=2),
        architecture=Architecture(name="resnet18"),
    )
    with pytest.raises(BatchStatisticsError, match="a step of 2 images"):
        pretrain(spec, make_images(2, size=32), {"epochs": 1, "batch_size": 2}, seed=0)
