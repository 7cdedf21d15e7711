"""Encoder networks: the CIFAR-stem ResNet-18 of any width, and torchvision's ResNets.

Never loads published weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.unlearning.catalog import Architecture, OpenClip

STAGES = 4
BLOCKS_PER_STAGE = 2
BN_MOMENTUM = 0.1
"""Weight of a new batch in the running statistics; torch's default."""


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over groups of a batch, as several GPUs would see it; one group in eval mode.

    (N, C, H, W) in and out. Uses the greatest common divisor of N and `splits` as group count.
    """

    def __init__(self, channels: int, splits: int) -> None:
        super().__init__(channels, momentum=BN_MOMENTUM)
        self.splits = splits

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each group by its own statistics; running statistics average the groups."""
        groups = math.gcd(len(x), self.splits) if self.training else 1
        if groups == 1:
            return super().forward(x)
        n, c, h, w = x.shape
        statistics = (self.running_mean, self.running_var)
        running = [r.repeat(groups) for r in statistics if r is not None]
        grouped = F.batch_norm(
            x.contiguous().view(n // groups, groups * c, h, w),
            running[0],
            running[1],
            self.weight.repeat(groups),
            self.bias.repeat(groups),
            True,
            BN_MOMENTUM,
            self.eps,
        )
        for kept, updated in zip(statistics, running, strict=True):
            if kept is not None:
                kept.copy_(updated.view(groups, c).mean(0))
        return grouped.view(n, c, h, w)


def _norm(channels: int, splits: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels) if splits == 1 else SplitBatchNorm2d(channels, splits)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, splits: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = _norm(outputs, splits)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = _norm(outputs, splits)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs, splits)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class CifarResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no max-pool: (N, 3, S, S) to (N, 8 * width) features."""

    def __init__(self, width: int, splits: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(STAGES):
            outputs = width * 2**stage
            for block in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, outputs, stride, splits))
                channels = outputs
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = _norm(width, splits)
        self.blocks = nn.Sequential(*blocks)
        self.out_features = channels

    def forward(self, x: Tensor) -> Tensor:
        """Features after global average pooling, all >= 0."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features: Tensor = self.blocks(x).mean(dim=(2, 3))
        return features


def build_encoder(
    architecture: Architecture | OpenClip, *, bn_splits: int = 1
) -> tuple[nn.Module, int]:
    """A freshly initialised residual encoder and its feature dimension, from torch's generator."""
    if isinstance(architecture, OpenClip):
        raise TypeError("open_clip's towers are built by the CLIP framework")
    encoder: nn.Module
    if architecture.name == "resnet18_cifar":
        encoder = CifarResNet18(architecture.width, bn_splits)
        features = encoder.out_features
    else:
        # Imported here: it brings torch's compiler along, seconds that small encoders need not wait.
        import torchvision  # noqa: PLC0415

        make: Callable[..., Any] = getattr(torchvision.models, architecture.name)
        network = make(weights=None, norm_layer=lambda channels: _norm(channels, bn_splits))
        features = int(network.fc.in_features)
        network.fc = nn.Identity()
        encoder = network
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return encoder, features


def lay_out(network: nn.Module, *, bn_splits: int) -> None:
    """Give weights the layout that trains fastest; split batch norm needs channels first."""
    layout = torch.channels_last if bn_splits == 1 else torch.contiguous_format
    network.to(memory_format=layout)
