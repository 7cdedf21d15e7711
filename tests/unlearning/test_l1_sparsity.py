"""l1-sparsity: its penalty, schedule and single steps against slow twins."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge.unlearning.catalog import EncoderSpec, FineTuneParams, L1SparsityParams
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import build
from expunge.unlearning.methods.l1_sparsity import l1_norm, penalty_weight
from expunge.unlearning.training import unlearn

MakeImages = Callable[..., ImageSet]
RATE = 0.01


def trained_weights(parameters: list[tuple[str, Tensor]]) -> list[Tensor]:
    return [p.detach() for name, p in parameters if not name.startswith("key_")]


@pytest.mark.parametrize("shapes", [[(1,)], [(3, 2), (4,)], [(2, 3, 3, 3), (2,), (2,), (1, 5)]])
def test_the_penalty_is_the_sum_of_absolute_weights(shapes: list[tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    trainable = [weight.clone().requires_grad_() for weight in weights]
    norm = l1_norm([*trainable, torch.ones(3, dtype=torch.float64)])
    slow = sum(abs(value) for weight in weights for value in weight.flatten().tolist())
    assert float(norm.detach()) == pytest.approx(slow, rel=1e-12)
    norm.backward()  # type: ignore[no-untyped-call]
    for weight, leaf in zip(weights, trainable, strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, weight.sign())


def test_biases_and_norms_of_encoder_and_projector_count_but_not_the_momentum_encoder(
    spec: EncoderSpec,
) -> None:
    learner = build(spec, seed=0)
    slow = sum(
        abs(value)
        for weight in trained_weights(list(learner.named_parameters()))
        for value in weight.flatten().tolist()
    )
    assert float(l1_norm(learner.parameters()).detach()) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [("constant", [0.8, 0.8, 0.8, 0.8]), ("linear_decay", [0.8, 0.6, 0.4, 0.2])],
)
def test_lambda_follows_its_schedule(schedule: str, weights: list[float]) -> None:
    params = L1SparsityParams.model_validate({"epochs": 4, "l1_weight": 0.8, "schedule": schedule})
    assert [penalty_weight(params, epoch) for epoch in range(4)] == pytest.approx(weights)


@pytest.mark.parametrize("schedule", ["constant", "linear_decay"])
@pytest.mark.parametrize("retain_size", [5, 8, 11])
def test_a_first_step_is_fine_tunings_less_rate_times_lambda_times_sign(
    make_images: MakeImages, spec: EncoderSpec, schedule: str, retain_size: int
) -> None:
    learner = build(spec, seed=0)
    retain, forget = make_images(retain_size), make_images(1, seed=1)
    effort = {"epochs": 1, "batch_size": 8, "learning_rate": RATE}
    tuned = unlearn(
        learner, retain, forget, "fine_tune", FineTuneParams.model_validate(effort), seed=0
    )
    params = L1SparsityParams.model_validate({**effort, "l1_weight": 0.1, "schedule": schedule})
    sparse = unlearn(learner, retain, forget, "l1_sparsity", params, seed=0)
    assert tuned.steps == sparse.steps == 1
    before, plain, penalised = (
        trained_weights(list(each.named_parameters()))
        for each in (learner, tuned.learner, sparse.learner)
    )
    for start, one, two in zip(before, plain, penalised, strict=True):
        torch.testing.assert_close(two - one, -RATE * 0.1 * start.sign(), rtol=1e-3, atol=2e-6)


def test_lambda_falls_while_a_run_goes_on(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    """What is reported in each epoch adds up with the weight of that epoch."""
    params = L1SparsityParams(epochs=4, batch_size=8, l1_weight=0.01)
    history = unlearn(
        build(simclr_spec, seed=0),
        make_images(24),
        make_images(2, seed=1),
        "l1_sparsity",
        params,
        seed=0,
    ).history
    found = [(terms["loss"] - terms["retain"]) / terms["l1_norm"] for terms in history]
    assert found == pytest.approx([0.01, 0.0075, 0.005, 0.0025], rel=1e-3)


def test_no_unlearn_sample_is_ever_shown(make_images: MakeImages, spec: EncoderSpec) -> None:
    learner = build(spec, seed=0)
    params = L1SparsityParams(epochs=2, batch_size=8)
    runs = [
        unlearn(learner, make_images(16), make_images(n, seed=n), "l1_sparsity", params, seed=0)
        for n in (1, 4)
    ]
    pairs = zip(*(run.learner.state_dict().values() for run in runs), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
