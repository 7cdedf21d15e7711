"""Optimisers and learning rates, against the formulas."""

import math

import pytest
import torch

from expunge.unlearning.catalog import (
    EncoderSpec,
    FineTuneParams,
    PretrainParams,
    RetrainParams,
    pretrain_params,
)
from expunge.unlearning.frameworks import build
from expunge.unlearning.optimisation import learning_rate, make_optimiser


def test_sgd_trains_what_has_gradients_with_decay_on_all_of_it(moco_spec: EncoderSpec) -> None:
    learner = build(moco_spec, seed=0)
    optimiser = make_optimiser(learner, PretrainParams(momentum=0.8, weight_decay=0.01))
    assert isinstance(optimiser, torch.optim.SGD)
    [group] = optimiser.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.06, 0.8, 0.01)
    trained = [*learner.encoder.parameters(), *learner.projector.parameters()]
    assert {id(p) for p in group["params"]} == {id(p) for p in trained}


def test_adamw_decays_matrices_and_filters_only(byol_spec: EncoderSpec) -> None:
    learner = build(byol_spec, seed=0)
    params = pretrain_params("clip", {"weight_decay": 0.3})
    optimiser = make_optimiser(learner, params)
    assert isinstance(optimiser, torch.optim.AdamW)
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    named = {n: p for n, p in learner.named_parameters() if not n.startswith("target_")}
    assert len(decay) == len(named)
    for name, parameter in named.items():
        spared = name.endswith("bias") or parameter.ndim == 1
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name
    for group in optimiser.param_groups:
        assert group["lr"] == 5e-4
        assert group["betas"] == (0.9, 0.98)
        assert group["eps"] == 1e-6


def test_adamw_steps_by_its_formula() -> None:
    """Two steps on two weights, by hand: Loshchilov and Hutter 2019, algorithm 2."""
    spec = EncoderSpec.model_validate({"objective": {"framework": "supervised", "classes": 2}})
    learner = build(spec, seed=0)
    params = FineTuneParams(optimiser="adamw", learning_rate=0.01, momentum=0.7, weight_decay=0.1)
    optimiser = make_optimiser(learner, params)
    for name, decay in (("classifier.weight", 0.1), ("classifier.bias", 0.0)):
        parameter = learner.get_parameter(name)
        weight = float(parameter.detach().flatten()[0])
        m = v = 0.0
        for step, gradient in enumerate([0.3, -0.05], start=1):
            parameter.grad = torch.full_like(parameter, gradient)
            optimiser.step()
            parameter.grad = None
            m, v = 0.7 * m + 0.3 * gradient, 0.98 * v + 0.02 * gradient**2
            weight -= 0.01 * decay * weight
            weight -= 0.01 * (m / (1 - 0.7**step)) / (math.sqrt(v / (1 - 0.98**step)) + 1e-6)
            assert float(parameter.detach().flatten()[0]) == pytest.approx(weight, rel=1e-5)


def test_the_rate_of_unlearning_is_constant() -> None:
    params = FineTuneParams(epochs=4, learning_rate=0.02)
    assert [learning_rate(params, epoch) for epoch in range(4)] == [0.02] * 4


@pytest.mark.parametrize("kind", [PretrainParams, RetrainParams])
def test_the_rate_of_pretraining_falls_along_a_cosine(kind: type[PretrainParams]) -> None:
    params = kind(epochs=4, learning_rate=0.8)
    root = math.sqrt(0.5)
    expected = [0.8, 0.4 * (1 + root), 0.4, 0.4 * (1 - root)]
    assert [learning_rate(params, e) for e in range(4)] == pytest.approx(expected)


def test_a_warm_up_rises_in_equal_steps_to_the_highest_rate() -> None:
    params = PretrainParams(epochs=6, learning_rate=0.9, warmup_epochs=2)
    root = math.sqrt(0.5)
    expected = [0.3, 0.6, 0.9, 0.45 * (1 + root), 0.45, 0.45 * (1 - root)]
    assert [learning_rate(params, e) for e in range(6)] == pytest.approx(expected)


def test_a_constant_schedule_warms_up_too() -> None:
    params = PretrainParams(epochs=4, learning_rate=0.9, warmup_epochs=2, schedule="constant")
    assert [learning_rate(params, e) for e in range(4)] == pytest.approx([0.3, 0.6, 0.9, 0.9])


@pytest.mark.parametrize(("epochs", "rates"), [(1, [0.9]), (2, [0.45, 0.9])])
def test_a_warm_up_longer_than_the_run_still_reaches_the_highest_rate(
    epochs: int, rates: list[float]
) -> None:
    params = PretrainParams(epochs=epochs, learning_rate=0.9, warmup_epochs=5)
    assert [learning_rate(params, e) for e in range(epochs)] == pytest.approx(rates)
