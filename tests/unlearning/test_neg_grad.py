"""NegGrad: its two losses against slow twins, and what the released marks get wrong."""

from collections.abc import Callable

import pytest
import torch
from tests.unlearning.test_objectives import slow_row_losses, some_contrast

from expunge.unlearning.catalog import EncoderSpec, NegGradParams
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import build
from expunge.unlearning.methods.base import SetSizes
from expunge.unlearning.methods.neg_grad import corrected_losses, released_losses
from expunge.unlearning.training import unlearn

MakeImages = Callable[..., ImageSet]
FRAMEWORKS = pytest.mark.parametrize("framework", ["simclr", "moco"])
SHAPES = pytest.mark.parametrize(("retain", "unlearn"), [(1, 1), (4, 1), (9, 3), (2, 6), (5, 5)])


def signed_sum(rows: list[list[float]], negated: list[list[bool]]) -> float:
    """Sum of the unmarked minus sum of the marked rows, over their number."""
    losses = [loss for row in rows for loss in row]
    marks = [mark for row in negated for mark in row]
    total = sum(-loss if mark else loss for loss, mark in zip(losses, marks, strict=True))
    return total / len(losses)


@FRAMEWORKS
@SHAPES
def test_in_a_batch_mixed_as_d_the_losses_of_unlearn_samples_are_negated(
    framework: str, retain: int, unlearn: int
) -> None:
    batch = retain + unlearn
    rows = slow_row_losses(framework, batch)
    slow = signed_sum(rows, [[i >= retain for i in range(batch)] for _ in rows])
    contrast = some_contrast(framework, batch, 0)
    terms = corrected_losses(contrast, retain, SetSizes(10 * retain, 10 * unlearn))
    assert float(terms["loss"]) == pytest.approx(slow, rel=1e-12, abs=1e-12)


@FRAMEWORKS
@SHAPES
def test_sets_weigh_as_in_d_however_the_batch_is_mixed(
    framework: str, retain: int, unlearn: int
) -> None:
    rows = slow_row_losses(framework, retain + unlearn)
    of_retain = [loss for row in rows for loss in row[:retain]]
    of_unlearn = [loss for row in rows for loss in row[retain:]]
    means = (sum(of_retain) / len(of_retain), sum(of_unlearn) / len(of_unlearn))
    terms = corrected_losses(some_contrast(framework, retain + unlearn, 0), retain, SetSizes(90, 7))
    assert float(terms["loss"]) == pytest.approx((90 * means[0] - 7 * means[1]) / 97, rel=1e-12)
    assert float(terms["retain"]) == pytest.approx(means[0], rel=1e-12, abs=1e-12)
    assert float(terms["unlearn"]) == pytest.approx(means[1], rel=1e-12, abs=1e-12)


@FRAMEWORKS
@SHAPES
@pytest.mark.parametrize("seed", [0, 1])
def test_released_marks_are_repeated_one_by_one(
    framework: str, retain: int, unlearn: int, seed: int
) -> None:
    """NumPy's `repeat` over the samples in batch order, against rows that run a, b, a, b."""
    batch = retain + unlearn
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    rows = [[row[i] for i in order.tolist()] for row in slow_row_losses(framework, batch)]
    marks = [i >= retain for i in order.tolist()]
    repeated = [mark for mark in marks for _ in rows]
    marked = [repeated[start : start + batch] for start in range(0, len(repeated), batch)]
    terms = released_losses(some_contrast(framework, batch, 0), retain, order)
    assert float(terms["loss"]) == pytest.approx(signed_sum(rows, marked), rel=1e-12, abs=1e-12)


def test_protocols_agree_for_moco_in_a_batch_mixed_as_d_but_not_for_simclr() -> None:
    order = torch.tensor([8, 0, 3, 1, 7, 2, 4, 6, 5])
    losses = {
        framework: (
            float(corrected_losses(contrast, 6, SetSizes(60, 30))["loss"]),
            float(released_losses(contrast, 6, order)["loss"]),
        )
        for framework in ("simclr", "moco")
        for contrast in [some_contrast(framework, 9, 0)]
    }
    assert losses["moco"][0] == pytest.approx(losses["moco"][1], rel=1e-12)
    assert losses["simclr"][0] != pytest.approx(losses["simclr"][1], rel=1e-3)


def test_the_released_protocol_is_deterministic_and_another_run(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    learner = build(simclr_spec, seed=0)

    def weights(protocol: str) -> torch.Tensor:
        params = NegGradParams.model_validate({"epochs": 1, "batch_size": 8, "protocol": protocol})
        run = unlearn(
            learner, make_images(16), make_images(4, seed=1), "neg_grad", params, seed=0
        ).learner
        return torch.cat([p.detach().flatten() for p in run.parameters()])

    assert torch.equal(weights("released"), weights("released"))
    assert not torch.equal(weights("released"), weights("corrected"))
