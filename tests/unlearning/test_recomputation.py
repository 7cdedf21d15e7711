"""Steps that make their activations anew: the same gradients and statistics as plain ones, in less memory."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from expunge.unlearning.batch_norm import estimate_statistics
from expunge.unlearning.catalog import BYOL, CLIP, Architecture, EncoderSpec, MoCo, SimCLR
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.recomputation import recomputing
from expunge.unlearning.training import pretrain, unlearn

MakeImages = Callable[..., ImageSet]
SIZE, BATCH, CONTEXT = 16, 12, 6
SMALL = {"architecture": Architecture(width=4), "image_size": SIZE}
SPECS = {
    "simclr": EncoderSpec(objective=SimCLR(projector_hidden=16, projector_dim=8), **SMALL),
    "moco": EncoderSpec(objective=MoCo(projector_dim=8, queue_size=24), **SMALL),
    "moco, split": EncoderSpec(
        objective=MoCo(projector_dim=8, queue_size=24, bn_splits=2), **SMALL
    ),
    "byol": EncoderSpec(objective=BYOL(hidden=16, projector_dim=8), **SMALL),
    "bottlenecks": EncoderSpec(
        objective=SimCLR(projector_hidden=16, projector_dim=8),
        architecture=Architecture(name="resnet50"),
        image_size=SIZE,
    ),
    "clip": EncoderSpec(objective=CLIP(context_length=CONTEXT), image_size=SIZE),
}
ROUNDING = 1e-5
"""Of float32 sums in another order, relative to the largest gradient of a tensor."""


def learner_of(name: str) -> Learner:
    learner = build(SPECS[name], seed=0).train()
    if hasattr(learner, "scramble_queue"):
        learner.scramble_queue()
    return learner


def second_of(learner: Learner) -> Tensor:
    """What first views are paired with."""
    if learner.spec.framework == "clip":
        return tokenise([f"number {i}" for i in range(BATCH)], CONTEXT).tokens
    return torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def one_step(learner: Learner, *, recompute: bool) -> dict[str, Tensor]:
    """Gradients of the weights after one forward and backward pass, and all buffers."""
    first = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(), recomputing(learner) if recompute else nullcontext():
        torch.manual_seed(0)
        contrast = learner.contrast(first, second_of(learner), torch.arange(BATCH))
        contrast.mean_loss().backward()
    gradients = {
        f"gradient of {n}": p.grad for n, p in learner.named_parameters() if p.grad is not None
    }
    return gradients | dict(learner.named_buffers())


@pytest.mark.parametrize("name", SPECS)
def test_a_step_has_the_gradients_and_statistics_of_the_plain_one(name: str) -> None:
    learner = learner_of(name)
    plain = one_step(copy.deepcopy(learner), recompute=False)
    found = one_step(learner, recompute=True)
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        tolerance = ROUNDING * max(1.0, float(value.abs().max()))
        assert torch.allclose(found[key].float(), value.float(), rtol=0, atol=tolerance), key


def test_a_run_gives_the_same_weights_bit_by_bit_where_batch_norm_keeps_it_whole(
    make_images: MakeImages,
) -> None:
    params = {"epochs": 2, "batch_size": 8}
    found = [
        pretrain(SPECS["simclr"], make_images(16), params, seed=0, recompute=recompute).learner
        for recompute in (False, True)
    ]
    plain, recomputed = (each.state_dict() for each in found)
    assert all(torch.equal(recomputed[name], value) for name, value in plain.items())
    assert [type(each) for each in found[0].modules()] == [
        type(each) for each in found[1].modules()
    ]


def test_second_derivatives_go_through_it(make_images: MakeImages) -> None:
    learner, retain, forget = learner_of("simclr"), make_images(12), make_images(4, seed=1)
    params = {"epochs": 1, "batch_size": 8}
    plain, recomputed = (
        unlearn(
            learner, retain, forget, "gradient_penalty", params, seed=0, recompute=recompute
        ).learner.state_dict()
        for recompute in (False, True)
    )
    for name, value in plain.items():
        assert torch.allclose(recomputed[name].float(), value.float(), atol=1e-6), name


def test_statistics_estimated_inside_count(make_images: MakeImages) -> None:
    """Without gradients nothing is recomputed, so nothing is held back either."""
    learner, images = learner_of("simclr"), make_images(8)
    twin = copy.deepcopy(learner)
    estimate_statistics(twin, images, seed=0, device=torch.device("cpu"))
    with recomputing(learner):
        estimate_statistics(learner, images, seed=0, device=torch.device("cpu"))
    expected = dict(twin.named_buffers())
    assert all(torch.equal(value, expected[name]) for name, value in learner.named_buffers())


def test_the_learner_is_what_it_was_afterwards_also_after_an_error() -> None:
    learner = learner_of("simclr")
    kinds = [type(each) for each in learner.modules()]

    def fail() -> None:
        with recomputing(learner):
            assert [type(each) for each in learner.modules()] != kinds
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert [type(each) for each in learner.modules()] == kinds


class Kept:
    """Bytes that a forward pass keeps for the backward pass, each tensor's memory once."""

    def __init__(self) -> None:
        self._tensors: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            self._tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    @property
    def bytes(self) -> int:
        return sum(each.untyped_storage().nbytes() for each in self._tensors.values())


@contextmanager
def counted() -> Iterator[Kept]:
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize(("name", "share"), [("simclr", 0.4), ("bottlenecks", 0.4), ("clip", 0.3)])
def test_it_keeps_a_fraction_of_the_activations(name: str, share: float) -> None:
    learner = learner_of(name)
    first = torch.rand(BATCH, 3, SIZE, SIZE)
    found = []
    for memory in (nullcontext(), recomputing(learner)):
        with memory, counted() as kept:
            learner.contrast(first, second_of(learner), torch.arange(BATCH))
        found.append(kept.bytes)
    assert found[1] < share * found[0]
