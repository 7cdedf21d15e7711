"""BYOL: its regression against slow twins, its moving target, and what never leaves."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity
from safetensors.torch import load_file
from torch import Tensor

from expunge.formats.tensors import write_release
from expunge.unlearning.catalog import EncoderSpec, MethodNotForFramework, PretrainParams
from expunge.unlearning.checkpoints import save
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import BYOL, Contrast, build
from expunge.unlearning.frameworks.byol import regression_terms
from expunge.unlearning.training import pretrain, unlearn

MakeImages = Callable[..., ImageSet]


def unit_rows(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def views(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def learner_of(spec: EncoderSpec) -> BYOL:
    learner = build(spec, seed=0)
    assert isinstance(learner, BYOL)
    return learner


def drifted(spec: EncoderSpec) -> BYOL:
    """With a target that is not the online network."""
    learner = learner_of(spec)
    with torch.no_grad():
        for parameter in learner.encoder.parameters():
            parameter.mul_(1.1)
        for parameter in learner.projector.parameters():
            parameter.add_(0.1)
    return learner


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("dim", [2, 8])
def test_the_terms_differ_by_the_squared_distance(batch: int, dim: int) -> None:
    q, z = unit_rows(batch, dim, 1), unit_rows(batch, dim, 2)
    alignment, constant = regression_terms(q, z)
    for i in range(batch):
        distance = sum((float(a) - float(b)) ** 2 for a, b in zip(q[i], z[i], strict=True))
        cosine = sum(float(a) * float(b) for a, b in zip(q[i], z[i], strict=True))
        assert float(constant[i] - alignment[i]) == pytest.approx(distance, rel=1e-12)
        assert float(alignment[i]) == pytest.approx(2 * cosine, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_the_loss_equals_lightlys_up_to_its_scale(batch: int) -> None:
    """Lightly minimises -s(q, z); |q - z|^2 is 2 + 2 of that."""
    q, z = unit_rows(batch, 8, 3), unit_rows(batch, 8, 4)
    alignment, constant = regression_terms(q, z)
    ours = Contrast(alignment.unsqueeze(0), constant.unsqueeze(0)).mean_loss()
    torch.testing.assert_close(ours, 2 + 2 * NegativeCosineSimilarity()(q, z))


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_equal_finite_differences(batch: int) -> None:
    def losses(raw: Tensor, target: Tensor) -> Tensor:
        alignment, constant = regression_terms(F.normalize(raw, dim=1), target)
        return constant - alignment

    raw = (2 * unit_rows(batch, 5, 5)).requires_grad_()
    assert torch.autograd.gradcheck(losses, (raw, unit_rows(batch, 5, 6)))


@torch.no_grad()
def test_a_batch_is_regressed_both_ways_one_view_at_a_time(byol_spec: EncoderSpec) -> None:
    learner = drifted(byol_spec).eval()
    first, second = views(4, 1), views(4, 2)
    contrast = learner.contrast(first, second, torch.arange(4))
    assert contrast.alignment.shape == contrast.log_partition.shape == (2, 4)
    assert contrast.third is None
    for row, (online, target) in enumerate([(first, second), (second, first)]):
        for i in range(4):
            projected = learner.projector(learner.encoder(online[i : i + 1]))
            q = F.normalize(learner.predictor(projected), dim=1)[0]
            z = learner.target_projector(learner.target_encoder(target[i : i + 1]))[0]
            expected = float((q - z / z.norm()).square().sum())
            found = contrast.log_partition[row, i] - contrast.alignment[row, i]
            assert float(found) == pytest.approx(expected, abs=1e-5)


def test_no_gradient_reaches_the_target(byol_spec: EncoderSpec) -> None:
    learner = drifted(byol_spec).train()
    learner.contrast(views(4, 1), views(4, 2), torch.arange(4)).mean_loss().backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_the_target_moves_by_the_papers_schedule(byol_spec: EncoderSpec, progress: float) -> None:
    learner = drifted(byol_spec)
    before = {n: p.clone() for n, p in learner.named_parameters()}
    learner.advance(progress)
    after = dict(learner.named_parameters())
    tau = 1 - (1 - 0.996) * (math.cos(math.pi * progress) + 1) / 2
    for name, value in before.items():
        expected = value
        if name.startswith("target_"):
            online = before[name.removeprefix("target_")]
            expected = tau * value + (1 - tau) * online
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-7)


def test_the_target_starts_as_the_online_network_and_follows_it_in_training(
    make_images: MakeImages, byol_spec: EncoderSpec
) -> None:
    fresh = learner_of(byol_spec)
    assert torch.equal(fresh.target_projector[0].weight, fresh.projector[0].weight)
    params = PretrainParams(epochs=2, batch_size=8)
    trained = pretrain(byol_spec, make_images(16), params, seed=0).learner
    assert isinstance(trained, BYOL)
    online = (trained.projector[0].weight - fresh.projector[0].weight).norm()
    target = (trained.target_projector[0].weight - fresh.projector[0].weight).norm()
    assert 0 < target.item() < online.item()


def test_third_views_are_refused(byol_spec: EncoderSpec) -> None:
    with pytest.raises(ValueError, match="no term for third views"):
        learner_of(byol_spec).contrast(views(2, 1), views(2, 2), torch.arange(2), views(1, 3))


def test_alignment_calibration_is_refused_for_want_of_negatives(
    make_images: MakeImages, byol_spec: EncoderSpec
) -> None:
    some = make_images(4)
    with pytest.raises(MethodNotForFramework, match="not for framework 'byol'"):
        unlearn(learner_of(byol_spec), some, some, "alignment_calibration", {}, seed=0)


def test_neither_predictor_nor_target_leaves_in_a_release(
    byol_spec: EncoderSpec, tmp_path: Path
) -> None:
    whole, released = tmp_path / "whole", tmp_path / "released"
    learner = drifted(byol_spec)
    save(learner, whole)
    write_release(whole, released)
    found = load_file(released)
    assert {name.split(".")[0] for name in load_file(whole)} == {
        "encoder",
        "projector",
        "predictor",
        "target_encoder",
        "target_projector",
    }
    assert {name.split(".")[0] for name in found} == {"encoder", "projector"}
    assert all(torch.equal(value, learner.state_dict()[name]) for name, value in found.items())


def test_training_learns(make_images: MakeImages, byol_spec: EncoderSpec) -> None:
    params = PretrainParams(epochs=20, batch_size=16)
    history = pretrain(byol_spec, make_images(32), params, seed=0).history
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
