import math

import pytest
import torch
from torch import Tensor

from expunge.unlearning.metrics.probe import LinearProbe, train_probe


def blobs(samples: int, *, seed: int = 0, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Three classes, one around each axis."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    noise = torch.randn(samples, 3, generator=generator)
    return torch.eye(3)[labels] + spread * noise, labels


def slow_probe(features: Tensor, labels: Tensor, seed: int, epochs: int) -> tuple[Tensor, Tensor]:
    """Momentum SGD on cross-entropy with gradients written out, in float64."""
    generator = torch.Generator().manual_seed(seed)
    n, f, classes = len(features), features.shape[1], 3
    weight = torch.empty(classes, f).uniform_(-(f**-0.5), f**-0.5, generator=generator).double()
    bias = torch.empty(classes).uniform_(-(f**-0.5), f**-0.5, generator=generator).double()
    speed_w, speed_b = torch.zeros_like(weight), torch.zeros_like(bias)
    for epoch in range(epochs):
        rate = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        order = torch.randperm(n, generator=generator)
        size = min(512, n)
        for start in range(0, n - size + 1, size):
            chosen = order[start : start + size]
            x, y = features[chosen].double(), labels[chosen]
            error = (x @ weight.T + bias).softmax(1) - torch.eye(classes).double()[y]
            speed_w = 0.9 * speed_w + error.T @ x / size
            speed_b = 0.9 * speed_b + error.mean(0)
            weight, bias = weight - rate * speed_w, bias - rate * speed_b
    return weight, bias


@pytest.mark.parametrize("samples", [1, 7, 512, 700, 1100])
def test_the_probe_equals_gradient_steps_written_out(samples: int) -> None:
    features, labels = blobs(samples, spread=0.5)
    probe = train_probe(lambda _: features, labels, 3, seed=4, epochs=6)
    weight, bias = slow_probe(features, labels, 4, 6)
    torch.testing.assert_close(probe.weight.double(), weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probe.bias.double(), bias, atol=1e-5, rtol=1e-5)


def test_separable_classes_are_read_without_error() -> None:
    probe = train_probe(lambda _: blobs(90)[0], blobs(90)[1], 3, seed=0)
    features, labels = blobs(60, seed=1)
    assert (probe.predictions(features) == labels).all()


def test_labels_that_mean_nothing_are_not_read_from_new_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(900, 4, generator=generator), torch.arange(900) % 3
    probe = train_probe(lambda _: features[:600], labels[:600], 3, seed=0, epochs=20)
    right = (probe.predictions(features[600:]) == labels[600:]).double().mean()
    assert right.item() == pytest.approx(1 / 3, abs=0.1)


def test_every_epoch_asks_for_its_own_features_once() -> None:
    features, labels = blobs(30)
    asked: list[int] = []

    def features_of(epoch: int) -> Tensor:
        asked.append(epoch)
        return features

    train_probe(features_of, labels, 3, seed=0, epochs=4)
    assert asked == [0, 1, 2, 3]


def test_a_seed_gives_the_same_probe_and_another_seed_another() -> None:
    features, labels = blobs(40)
    first, again, other = (
        train_probe(lambda _: features, labels, 3, seed=seed, epochs=2) for seed in (1, 1, 2)
    )
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_training_a_probe_leaves_torchs_generator_alone() -> None:
    features, labels = blobs(10)
    before = torch.get_rng_state()
    train_probe(lambda _: features, labels, 3, seed=0, epochs=1)
    assert torch.equal(before, torch.get_rng_state())


def test_confidence_is_the_probability_of_the_true_class() -> None:
    probe = LinearProbe(torch.tensor([[1.0], [0.0], [-1.0]]), torch.zeros(3))
    confidence = probe.confidence(torch.tensor([[2.0], [0.0]]), torch.tensor([0, 2]))
    expected = [math.exp(2) / (math.exp(2) + 1 + math.exp(-2)), 1 / 3]
    assert confidence.tolist() == pytest.approx(expected)
