"""Linear probe: how much of the classes a linear layer reads from frozen features.

Trains the layer alone; never runs or changes an encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPOCHS = 100
LEARNING_RATE = 1.0
MOMENTUM = 0.9
BATCH_SAMPLES = 512


@dataclass(frozen=True)
class LinearProbe:
    """A trained linear classifier: weight (C, F) and bias (C,), float32."""

    weight: Tensor
    bias: Tensor

    def predictions(self, features: Tensor) -> Tensor:
        """(N,) int64 classes of (N, F) features."""
        return F.linear(features, self.weight, self.bias).argmax(dim=1)

    def confidence(self, features: Tensor, labels: Tensor) -> Tensor:
        """(N,) softmax probability of each sample's own (N,) int64 label, in [0, 1]."""
        probabilities = F.linear(features, self.weight, self.bias).softmax(dim=1)
        return probabilities.gather(1, labels.view(-1, 1)).squeeze(1)


def train_probe(
    features_of: Callable[[int], Tensor],
    labels: Tensor,
    classes: int,
    *,
    seed: int,
    epochs: int = EPOCHS,
) -> LinearProbe:
    """Fit a linear layer by SGD: rate 1.0, momentum 0.9, a cosine over epochs, batches of 512.

    features_of: epoch number to (N, F) float32 features, the same tensor each time where nothing
    is augmented; labels: (N,) int64 in [0, classes), on the same device. The last incomplete batch
    of an epoch is dropped; fewer than 512 samples are one batch. Start and order depend on seed
    alone, not on the device.
    """
    device, samples = labels.device, len(labels)
    generator = torch.Generator().manual_seed(seed)
    features = features_of(0)
    layer = _layer(features.shape[1], classes, generator).to(device)
    optimiser = torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    batch = min(BATCH_SAMPLES, samples)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 + cos(pi * epoch / epochs)) / 2
        if epoch > 0:
            features = features_of(epoch)
        order = torch.randperm(samples, generator=generator).to(device)
        for start in range(0, samples - batch + 1, batch):
            chosen = order[start : start + batch]
            optimiser.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(layer(features[chosen]), labels[chosen])
            torch.autograd.backward(loss)
            optimiser.step()
    return LinearProbe(layer.weight.detach(), layer.bias.detach())


def _layer(features: int, classes: int, generator: torch.Generator) -> nn.Linear:
    """Torch's usual start of a linear layer, uniform within 1 / sqrt(features), on the CPU."""
    layer = nn.Linear(features, classes, device="meta").to_empty(device="cpu")
    bound = features**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
