"""Gradient penalty: norms and weights' gradients by finite differences in float64, terms by slow
twins, and what a step leaves as it is.
"""

import pytest
import torch
from torch import Tensor, nn

from expunge.unlearning.catalog import EncoderSpec, GradientPenaltyParams
from expunge.unlearning.frameworks import Contrast, build
from expunge.unlearning.frameworks.byol import regression_terms
from expunge.unlearning.frameworks.clip import pair_terms
from expunge.unlearning.frameworks.moco import EMPTY, info_nce_terms
from expunge.unlearning.frameworks.simclr import nt_xent_terms
from expunge.unlearning.frameworks.supervised import cross_entropy_terms
from expunge.unlearning.methods.base import Batch, SetSizes
from expunge.unlearning.methods.gradient_penalty import (
    GradientPenalty,
    input_gradient_norms,
    penalty_terms,
)

SIZE, DIM, CLASSES = 3, 4, 3
STEP = 1e-5
"""Of central differences."""
OBJECTIVES = ["simclr", "moco", "byol", "clip", "supervised"]
SHAPES = [(1, 1), (4, 1), (3, 2), (1, 4)]


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(rows: Tensor) -> Tensor:
    return nn.functional.normalize(rows, dim=1)


def tiny_network() -> nn.Sequential:
    """Smooth, so that finite differences hold, and with batch norm, which couples the samples."""
    network = nn.Sequential(
        nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(8, DIM)
    ).double()
    with torch.no_grad():
        for seed, parameter in enumerate(network.parameters()):
            parameter.copy_(0.7 * draw(*parameter.shape, seed=seed))
    return network.train()


def contrast_of(objective: str, network: nn.Module, first: Tensor) -> Contrast:
    batch = len(first)
    z, other = network(first), draw(batch, DIM, seed=20)
    match objective:
        case "simclr":
            second = network(draw(*first.shape, seed=21))
            return Contrast(*nt_xent_terms(unit(z), unit(second), 0.5))
        case "moco":
            queue, filled = unit(draw(5, DIM, seed=22)), torch.arange(5) < 4
            return Contrast(*info_nce_terms(unit(z), unit(other), queue, filled, 0.2))
        case "byol":
            alignment, constant = regression_terms(unit(z), unit(other))
            return Contrast(alignment.view(1, -1), constant.view(1, -1))
        case "clip":
            scale = torch.tensor(5.0, dtype=torch.float64)
            return Contrast(*pair_terms(unit(z), unit(other), scale))
        case _:
            return Contrast(*cross_entropy_terms(z[:, :CLASSES], torch.arange(batch) % CLASSES))


def slow_norms(objective: str, network: nn.Module, first: Tensor, retain: int) -> list[float]:
    """Central differences of the unlearn samples' summed losses, one pixel at a time."""

    def summed(views: Tensor) -> float:
        with torch.no_grad():
            return float(contrast_of(objective, network, views).sample_losses()[retain:].sum())

    norms = []
    for sample in range(retain, len(first)):
        squares = 0.0
        for pixel in range(first[sample].numel()):
            change = torch.zeros_like(first)
            change[sample].view(-1)[pixel] = STEP
            squares += ((summed(first + change) - summed(first - change)) / (2 * STEP)) ** 2
        norms.append(squares**0.5)
    return norms


def penalty_of(objective: str, network: nn.Module, first: Tensor, retain: int) -> Tensor:
    inputs = first[retain:].clone().requires_grad_()
    contrast = contrast_of(objective, network, torch.cat([first[:retain], inputs]))
    norms = input_gradient_norms(contrast.sample_losses()[retain:], inputs)
    return (norms - 1).square().mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("retain", "unlearn_count"), SHAPES)
def test_norms_equal_finite_differences_pixel_by_pixel(
    objective: str, retain: int, unlearn_count: int
) -> None:
    network, first = tiny_network(), draw(retain + unlearn_count, 3, SIZE, SIZE, seed=9)
    inputs = first[retain:].clone().requires_grad_()
    contrast = contrast_of(objective, network, torch.cat([first[:retain], inputs]))
    norms = input_gradient_norms(contrast.sample_losses()[retain:], inputs)
    slow = slow_norms(objective, network, first, retain)
    assert norms.tolist() == pytest.approx(slow, rel=1e-6)
    assert min(slow) > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("retain", "unlearn_count"), [(4, 1), (3, 2)])
def test_the_penaltys_gradient_in_the_weights_equals_finite_differences(
    objective: str, retain: int, unlearn_count: int
) -> None:
    network, first = tiny_network(), draw(retain + unlearn_count, 3, SIZE, SIZE, seed=9)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(
        penalty_of(objective, network, first, retain), parameters, allow_unused=True
    )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        values = parameter.data.view(-1)
        for i in range(len(values)):
            kept = float(values[i])
            around = []
            for moved in (kept + STEP, kept - STEP):
                values[i] = moved
                around.append(float(penalty_of(objective, network, first, retain).detach()))
            values[i] = kept
            exact = 0.0 if gradient is None else float(gradient.reshape(-1)[i])
            assert exact == pytest.approx((around[0] - around[1]) / (2 * STEP), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("members", ["retain", "all"])
@pytest.mark.parametrize("weight", [0, 1, 10.0])
@pytest.mark.parametrize(("retain", "unlearn_count"), SHAPES)
def test_the_terms_equal_the_slow_twin(
    members: str, weight: float, retain: int, unlearn_count: int
) -> None:
    losses = draw(retain + unlearn_count, seed=1)
    norms = draw(unlearn_count, seed=2).abs()
    params = GradientPenaltyParams.model_validate({"members": members, "penalty_weight": weight})
    penalty = sum((float(norm) - 1) ** 2 for norm in norms) / unlearn_count
    kept, forgotten = [float(x) for x in losses[:retain]], [float(x) for x in losses[retain:]]
    expected = sum(kept) / retain
    if members == "all":
        expected = (90 * expected + 7 * sum(forgotten) / unlearn_count) / 97
    terms = penalty_terms(losses, retain, norms, SetSizes(90, 7), params)
    assert float(terms["loss"]) == pytest.approx(expected + weight * penalty, rel=1e-12)
    assert float(terms["penalty"]) == pytest.approx(penalty, rel=1e-12)


def test_a_sample_whose_loss_does_not_depend_on_it_has_norm_zero_and_no_nan() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    inputs = torch.zeros(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    losses = weight * inputs.flatten(1).square().sum(dim=1)
    norms = input_gradient_norms(losses, inputs)
    assert norms.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad((norms - 1).square().mean(), weight)
    assert float(gradient) == 0


def some_batch(second: Tensor, retain: int) -> Batch:
    count = len(second)
    first = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(first, second, torch.arange(count), retain, epoch=0)


def test_a_step_gives_mocos_queue_each_key_once(moco_spec: EncoderSpec) -> None:
    learner = build(moco_spec, seed=0).train()
    batch = some_batch(torch.randn(6, 3, 16, 16), 4)
    GradientPenalty(GradientPenaltyParams()).losses(learner, batch, SetSizes(40, 20))
    assert learner.queue_ids[learner.queue_ids != EMPTY].tolist() == [0, 1, 2, 3, 4, 5]


def test_autocast_changes_nothing_and_the_batch_stays_as_it_is(
    supervised_spec: EncoderSpec,
) -> None:
    batch = some_batch(torch.arange(6) % 3, 4)
    method = GradientPenalty(GradientPenaltyParams())
    found = []
    for enabled in (True, False):
        learner = build(supervised_spec, seed=0).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms = method.losses(learner, batch, SetSizes(4, 2))
        terms["loss"].backward()
        found.append([terms["loss"].item(), float(learner.classifier.weight.grad.norm())])
    assert found[0] == found[1]
    assert not batch.first.requires_grad
    assert batch.first.grad is None
