"""Networks that only answer, with batch norm folded away, against those that train."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from expunge.unlearning.catalog import Architecture, EncoderSpec, MoCo, SimCLR
from expunge.unlearning.frameworks import build
from expunge.unlearning.frameworks.folding import fold_batch_norm


def trained(spec: EncoderSpec) -> nn.Module:
    """An encoder whose batch norm is not that of a fresh network."""
    encoder = build(spec, seed=0).encoder
    draw = torch.Generator().manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=draw)
            module.running_var.uniform_(0.5, 2, generator=draw)
            nn.init.uniform_(module.weight, 0.5, 2, generator=draw)
            nn.init.normal_(module.bias, generator=draw)
    return encoder


@pytest.mark.parametrize("objective", [SimCLR(), MoCo(queue_size=64, bn_splits=4)])
@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(width=4),
        Architecture(name="resnet18"),
        Architecture(name="resnet50"),
    ],
)
@torch.no_grad()
def test_a_folded_encoder_says_the_same_without_batch_norm(
    objective: SimCLR | MoCo, architecture: Architecture
) -> None:
    encoder = trained(EncoderSpec(objective=objective, architecture=architecture)).eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    folded = deepcopy(encoder)
    fold_batch_norm(folded)
    expected = encoder(x)
    assert expected.std() > 0
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_an_encoder_that_trains_is_refused() -> None:
    encoder = trained(EncoderSpec(objective=SimCLR(), architecture=Architecture(width=4)))
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norm(encoder.train())
