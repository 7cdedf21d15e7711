"""Whose images the running statistics of a released encoder come from."""

from collections.abc import Callable

import pytest
import torch

from expunge.unlearning.batch_norm import estimate_statistics
from expunge.unlearning.catalog import EncoderSpec, MoCo
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import build
from expunge.unlearning.training import pretrain, unlearn

MakeImages = Callable[..., ImageSet]
CPU = torch.device("cpu")


def test_statistics_are_those_of_the_given_images(
    simclr_spec: EncoderSpec, make_images: MakeImages
) -> None:
    learner, images = build(simclr_spec, seed=0), make_images(10)
    estimate_statistics(learner, images, seed=3, device=CPU)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    views = Views(16, simclr_spec.mean, simclr_spec.std, seed=3)
    shown = views(images.images[order], images.ids[order], 0)
    first = learner.encoder.conv1(shown).detach().double()
    for channel in range(first.shape[1]):
        values = first[:, channel].flatten()
        assert float(learner.encoder.bn1.running_mean[channel]) == pytest.approx(
            float(values.sum() / len(values)), abs=1e-5
        )
        assert float(learner.encoder.bn1.running_var[channel]) == pytest.approx(
            float(((values - values.mean()) ** 2).sum() / (len(values) - 1)), rel=1e-4
        )


def test_nothing_else_changes(moco_spec: EncoderSpec, make_images: MakeImages) -> None:
    split = moco_spec.model_copy(update={"objective": MoCo(projector_dim=8, bn_splits=2)})
    learner = build(split, seed=0).eval()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    estimate_statistics(learner, make_images(8), seed=0, device=CPU)
    changed = {n for n, v in learner.state_dict().items() if not torch.equal(v, before[n])}
    assert changed
    assert all(n.startswith("encoder.") for n in changed)
    assert all("running" in n or "num_batches" in n for n in changed)
    norms = [m for m in learner.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(not n.training and n.momentum == 0.1 and n.splits == 2 for n in norms)


def test_a_single_image_changes_nothing(simclr_spec: EncoderSpec, make_images: MakeImages) -> None:
    learner = build(simclr_spec, seed=0)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    estimate_statistics(learner, make_images(1), seed=0, device=CPU)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_the_choice_changes_statistics_and_no_weight(
    simclr_spec: EncoderSpec, make_images: MakeImages
) -> None:
    retain, forget = make_images(16), make_images(8, seed=1)
    start = pretrain(simclr_spec, retain, {"epochs": 1, "batch_size": 8}, seed=0).learner
    results = {}
    for choice in ("all", "retain"):
        params = {"epochs": 1, "batch_size": 8, "bn_statistics": choice}
        done = unlearn(start, retain, forget, "alignment_calibration", params, seed=0)
        results[choice] = done.learner.state_dict()
    differing = {n for n, v in results["all"].items() if not torch.equal(v, results["retain"][n])}
    assert differing
    assert all("running" in n or "num_batches" in n for n in differing)
