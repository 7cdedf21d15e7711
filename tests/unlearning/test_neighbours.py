import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.evidence.audit.alignment import self_alignment
from expunge.unlearning.metrics import neighbours as module
from expunge.unlearning.metrics.neighbours import (
    alignment_losses,
    neighbour_predictions,
    uniformity,
)


def directions(count: int, dimensions: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dimensions, generator=generator), dim=1)


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize(("queries", "bank"), [(1, 1), (5, 30), (40, 12)])
def test_neighbours_vote_as_in_the_loop(
    queries: int, bank: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    asked, known, labels = directions(queries), directions(bank, seed=1), torch.arange(bank) % 3
    predicted = neighbour_predictions(asked, known, labels, 4, k)
    for query, ours in zip(asked, predicted, strict=True):
        cosines = [float(query @ each) for each in known]
        nearest = sorted(range(bank), key=lambda i: -cosines[i])[:k]
        votes = [0.0] * 4
        for i in nearest:
            votes[int(labels[i])] += math.exp(cosines[i] / 0.1)
        assert int(ours) == max(range(4), key=votes.__getitem__)


def test_a_closer_neighbour_outvotes_two_far_ones() -> None:
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), dim=1)
    query = F.normalize(torch.tensor([[1.0, 0.1]]), dim=1)
    assert neighbour_predictions(query, bank, torch.tensor([0, 1, 1]), 2).tolist() == [0]


def test_alignment_is_the_mean_squared_distance_between_views() -> None:
    views = torch.stack([directions(6, seed=seed) for seed in range(4)]).double()
    views = F.normalize(views, dim=2)
    pairs = [(v, w) for v in range(4) for w in range(v)]
    slow = np.mean([float((views[v] - views[w]).square().sum(1).mean()) for v, w in pairs])
    same = self_alignment(views.sum(0).numpy(), 4)
    assert alignment_losses(same).mean() == pytest.approx(slow)


@pytest.mark.parametrize("samples", [2, 3, 17])
def test_uniformity_equals_the_loop_over_pairs(samples: int) -> None:
    features = directions(samples)
    kernel = [
        math.exp(-2 * float((features[i] - features[j]).square().sum()))
        for i in range(samples)
        for j in range(i)
    ]
    assert uniformity(features) == pytest.approx(math.log(sum(kernel) / len(kernel)), abs=1e-5)


def test_uniformity_of_one_point_is_zero_and_of_a_wide_sphere_about_minus_four() -> None:
    assert uniformity(directions(1).repeat(5, 1)) == pytest.approx(0, abs=1e-6)
    assert uniformity(directions(300, 512)) == pytest.approx(-4, abs=0.05)
    with pytest.raises(ValueError, match="two samples"):
        uniformity(directions(1))
