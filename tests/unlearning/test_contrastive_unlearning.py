"""Contrastive unlearning: its loss against a slow twin, and its edge cases."""

import math

import pytest
import torch
from torch import Tensor

from expunge.unlearning.catalog import EncoderSpec, MethodNotForFramework, parse_params
from expunge.unlearning.frameworks import build
from expunge.unlearning.methods import make_method
from expunge.unlearning.methods.base import Batch, SetSizes
from expunge.unlearning.methods.contrastive_unlearning import unlearning_loss


def rows(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


def slow_loss(
    unlearn_rows: Tensor, mine: list[int], retain: Tensor, theirs: list[int], t: float
) -> float:
    total = 0.0
    for x, label in zip(unlearn_rows, mine, strict=True):
        others = [r for r, other in zip(retain, theirs, strict=True) if other != label]
        own = [r for r, other in zip(retain, theirs, strict=True) if other == label]
        if own:
            total += math.log(sum(math.exp(cosine(x, r) / t) for r in own))
        if others:
            total -= sum(cosine(x, r) / t for r in others) / len(others)
    return total / len(unlearn_rows)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([0], [1]),
        ([0], [0]),
        ([0, 1, 2], [0, 1, 1, 2, 2, 2]),
        ([0, 0, 3], [0, 1, 2, 0]),
        ([1, 1], [0, 2, 2]),
    ],
)
def test_the_loss_equals_the_slow_twin(
    mine: list[int], theirs: list[int], temperature: float
) -> None:
    ours, retained = rows(len(mine), 1), rows(len(theirs), 2)
    fast = unlearning_loss(ours, torch.tensor(mine), retained, torch.tensor(theirs), temperature)
    slow = slow_loss(ours, mine, retained, theirs, temperature)
    assert float(fast) == pytest.approx(slow, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("theirs", [[0, 1, 1, 2], [1, 1], [0, 0, 0]])
def test_its_gradient_equals_finite_differences(theirs: list[int]) -> None:
    ours, retained = rows(2, 1).requires_grad_(), rows(len(theirs), 2).requires_grad_()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return unlearning_loss(a, torch.tensor([0, 2]), b, torch.tensor(theirs), 0.7)

    assert torch.autograd.gradcheck(loss, (ours, retained))


def test_it_is_refused_for_encoders_without_a_classifier(simclr_spec: EncoderSpec) -> None:
    method = make_method(
        "contrastive_unlearning", parse_params("contrastive_unlearning", "supervised", {})
    )
    views = torch.zeros(3, 3, 16, 16)
    batch = Batch(views, torch.zeros(3, dtype=torch.int64), torch.arange(3), 2, 0)
    with pytest.raises(MethodNotForFramework, match="for: supervised"):
        method.losses(build(simclr_spec, seed=0), batch, SetSizes(2, 1))
