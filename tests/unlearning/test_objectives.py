"""The objectives against slow twins: float64, one pair at a time, written from the formulas."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from expunge.unlearning.catalog import AlignmentCalibrationParams
from expunge.unlearning.frameworks import Contrast
from expunge.unlearning.frameworks.moco import info_nce_terms
from expunge.unlearning.frameworks.simclr import nt_xent_terms
from expunge.unlearning.methods.alignment_calibration import calibration_losses
from expunge.unlearning.methods.base import SetSizes

TEMPERATURES = [0.1, 0.5]


def unit_rows(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def slow_nt_xent(z1: Tensor, z2: Tensor, t: float) -> tuple[list[list[float]], list[list[float]]]:
    views = [*z1, *z2]
    batch = len(z1)
    alignment: list[list[float]] = [[], []]
    partition: list[list[float]] = [[], []]
    for i, anchor in enumerate(views):
        positive = views[(i + batch) % (2 * batch)]
        alignment[i // batch].append(dot(anchor, positive) / t)
        total = sum(math.exp(dot(anchor, v) / t) for j, v in enumerate(views) if j != i)
        partition[i // batch].append(math.log(total))
    return alignment, partition


def slow_info_nce(
    q: Tensor, k: Tensor, queue: Tensor, filled: list[bool], t: float
) -> tuple[list[list[float]], list[list[float]]]:
    alignment, partition = [], []
    for query, key in zip(q, k, strict=True):
        alignment.append(dot(query, key) / t)
        total = math.exp(dot(query, key) / t)
        for negative, counts in zip(queue, filled, strict=True):
            if counts:
                total += math.exp(dot(query, negative) / t)
        partition.append(math.log(total))
    return [alignment], [partition]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [1, 2, 5, 16])
@pytest.mark.parametrize("dim", [2, 8])
def test_nt_xent_equals_the_slow_twin(batch: int, dim: int, temperature: float) -> None:
    z1, z2 = unit_rows(batch, dim, 1), unit_rows(batch, dim, 2)
    fast = nt_xent_terms(z1, z2, temperature)
    for ours, slow in zip(fast, slow_nt_xent(z1, z2, temperature), strict=True):
        torch.testing.assert_close(ours, torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [2, 7, 32])
def test_nt_xent_equals_lightlys(batch: int, temperature: float) -> None:
    z1, z2 = unit_rows(batch, 8, 3).float(), unit_rows(batch, 8, 4).float()
    ours = Contrast(*nt_xent_terms(z1, z2, temperature)).mean_loss()
    torch.testing.assert_close(ours, NTXentLoss(temperature=temperature)(z1, z2))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("filled", [0, 1, 5])
def test_moco_info_nce_equals_the_slow_twin(batch: int, filled: int, temperature: float) -> None:
    q, k, queue = unit_rows(batch, 6, 1), unit_rows(batch, 6, 2), unit_rows(5, 6, 3)
    mask = [i < filled for i in range(5)]
    fast = info_nce_terms(q, k, queue, torch.tensor(mask), temperature)
    for ours, slow in zip(fast, slow_info_nce(q, k, queue, mask, temperature), strict=True):
        torch.testing.assert_close(ours, torch.tensor(slow, dtype=torch.float64))


def slow_calibration(
    contrast: Contrast, retain: int, sizes: SetSizes, params: AlignmentCalibrationParams
) -> float:
    """Eqs. 3-5 term by term: L_retain + eps L_unlearn, over 1 + eps."""
    assert contrast.third is not None
    rows = range(len(contrast.alignment))
    batch = contrast.alignment.shape[1]
    of_retain = [(r, i) for r in rows for i in range(retain)]
    of_unlearn = [(r, i) for r in rows for i in range(retain, batch)]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    l_retain = mean([float(contrast.log_partition[p] - contrast.alignment[p]) for p in of_retain])
    negative = -mean([float(contrast.alignment[p]) for p in of_unlearn])
    preserving = mean([float(contrast.log_partition[p]) for p in of_unlearn])
    positive = mean([float(c) for c in contrast.third])
    if sizes.unlearn == 1:
        negative = 0.0
    eps = sizes.unlearn / sizes.retain
    l_unlearn = params.alpha * negative + params.beta * positive + params.gamma * preserving
    return (l_retain + eps * l_unlearn) / (1 + eps)


@pytest.mark.parametrize("framework", ["simclr", "moco"])
@pytest.mark.parametrize("retain", [1, 4, 9])
@pytest.mark.parametrize("unlearn", [1, 2, 6])
@pytest.mark.parametrize("weights", [(1, 0, 1), (2, 8, 0.5), (0, 3, 1)])
def test_alignment_calibration_equals_the_slow_twin(
    framework: str, retain: int, unlearn: int, weights: tuple[float, float, float]
) -> None:
    alpha, beta, gamma = weights
    contrast = some_contrast(framework, retain + unlearn, unlearn)
    params = AlignmentCalibrationParams(alpha=alpha, beta=beta, gamma=gamma)
    sizes = SetSizes(retain=40, unlearn=unlearn)
    ours = calibration_losses(contrast, retain, sizes, params)["loss"]
    slow = slow_calibration(contrast, retain, sizes, params)
    assert float(ours) == pytest.approx(slow, rel=1e-12)


def some_contrast(framework: str, batch: int, third: int) -> Contrast:
    z1, z2, z3 = (unit_rows(batch, 6, seed) for seed in (1, 2, 3))
    if framework == "simclr":
        terms = nt_xent_terms(z1, z2, 0.5)
    else:
        queue = unit_rows(5, 6, 4)
        terms = info_nce_terms(z1, z2, queue, torch.ones(5, dtype=torch.bool), 0.1)
    return Contrast(*terms, third=(z1[batch - third :] * z3[batch - third :]).sum(1))


def slow_row_losses(framework: str, batch: int) -> list[list[float]]:
    """InfoNCE of each row and sample of `some_contrast`, by the slow twins."""
    z1, z2 = unit_rows(batch, 6, 1), unit_rows(batch, 6, 2)
    if framework == "simclr":
        alignment, partition = slow_nt_xent(z1, z2, 0.5)
    else:
        alignment, partition = slow_info_nce(z1, z2, unit_rows(5, 6, 4), [True] * 5, 0.1)
    return [
        [p - a for a, p in zip(*row, strict=True)] for row in zip(alignment, partition, strict=True)
    ]


def released_loss(
    contrast: Contrast, retain: int, sizes: SetSizes, alpha: float, beta: float
) -> Tensor:
    """The paper's code: InfoNCE with row weights 1 and alpha over their sum, plus the beta term."""
    assert contrast.third is not None
    row_loss = contrast.log_partition - contrast.alignment
    weights = torch.ones_like(row_loss)
    weights[:, retain:] = alpha
    share = sizes.unlearn / (sizes.retain + sizes.unlearn)
    return (weights * row_loss).sum() / weights.sum() + beta * share * contrast.third.mean()


@pytest.mark.parametrize("framework", ["simclr", "moco"])
@pytest.mark.parametrize("beta", [0, 8])
@pytest.mark.parametrize(("retain", "unlearn"), [(9, 3), (6, 2), (4, 4)])
def test_equal_weights_of_one_reduce_to_the_released_loss(
    framework: str, retain: int, unlearn: int, beta: float
) -> None:
    """In a batch mixed as D is mixed, as the released code's are on average."""
    contrast = some_contrast(framework, retain + unlearn, unlearn)
    sizes = SetSizes(10 * retain, 10 * unlearn)
    params = AlignmentCalibrationParams(alpha=1, gamma=1, beta=beta)
    ours = calibration_losses(contrast, retain, sizes, params)["loss"]
    torch.testing.assert_close(ours, released_loss(contrast, retain, sizes, 1, beta))


@pytest.mark.parametrize("framework", ["simclr", "moco"])
@pytest.mark.parametrize("alpha", [0, 0.5, 3])
def test_equal_weights_reduce_to_the_released_loss_under_its_protocol(
    framework: str, alpha: float
) -> None:
    """For alpha other than 1 only the divisor differs, and `protocol` restores it."""
    contrast = some_contrast(framework, 12, 3)
    sizes = SetSizes(90, 30)
    params = AlignmentCalibrationParams(alpha=alpha, gamma=alpha, beta=5, protocol="released")
    ours = calibration_losses(contrast, 9, sizes, params)["loss"]
    torch.testing.assert_close(ours, released_loss(contrast, 9, sizes, alpha, 5))


def test_the_share_of_a_batch_to_unlearn_does_not_change_the_weights() -> None:
    """One unlearn sample repeated in the batch counts as one."""
    sizes = SetSizes(retain=99, unlearn=2)
    params = AlignmentCalibrationParams(beta=0)
    single = some_contrast("moco", 6, 2)
    doubled = Contrast(
        torch.cat([single.alignment, single.alignment[:, 4:]], dim=1),
        torch.cat([single.log_partition, single.log_partition[:, 4:]], dim=1),
        single.third,
    )
    torch.testing.assert_close(
        calibration_losses(single, 4, sizes, params)["loss"],
        calibration_losses(doubled, 4, sizes, params)["loss"],
    )
