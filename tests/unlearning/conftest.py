"""Small learners and image sets: width 4, 16 pixels."""

import hashlib
from collections.abc import Callable

import pytest
import torch

from expunge.unlearning.catalog import (
    BYOL,
    Architecture,
    EncoderSpec,
    MoCo,
    SimCLR,
    Supervised,
)
from expunge.unlearning.data.image_set import ImageSet, sample_id

SIZE = 16


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks this small gain nothing from threads, and lose much where cores are shared."""
    torch.set_num_threads(1)


def _make_images(count: int, *, seed: int = 0, size: int = SIZE) -> ImageSet:
    """Random smooth images with ids as they would come from shards."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    pixels = (images * 255).to(torch.uint8)
    digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in pixels]
    return ImageSet(
        images=pixels,
        ids=torch.tensor([sample_id(digest) for digest in digests]),
        keys=[f"{seed}-{i}" for i in range(count)],
        labels=torch.arange(count) % 3,
    )


@pytest.fixture
def make_images() -> Callable[..., ImageSet]:
    """`make_images(count, seed=0, size=16)`."""
    return _make_images


@pytest.fixture
def simclr_spec() -> EncoderSpec:
    return EncoderSpec(
        objective=SimCLR(projector_hidden=16, projector_dim=8),
        architecture=Architecture(width=4),
        image_size=SIZE,
    )


@pytest.fixture
def moco_spec() -> EncoderSpec:
    return EncoderSpec(
        objective=MoCo(projector_dim=8, queue_size=24),
        architecture=Architecture(width=4),
        image_size=SIZE,
    )


@pytest.fixture
def byol_spec() -> EncoderSpec:
    return EncoderSpec(
        objective=BYOL(hidden=16, projector_dim=8),
        architecture=Architecture(width=4),
        image_size=SIZE,
    )


@pytest.fixture
def supervised_spec() -> EncoderSpec:
    return EncoderSpec(
        objective=Supervised(classes=3), architecture=Architecture(width=4), image_size=SIZE
    )


@pytest.fixture(params=["simclr", "moco"])
def spec(
    request: pytest.FixtureRequest, simclr_spec: EncoderSpec, moco_spec: EncoderSpec
) -> EncoderSpec:
    return {"simclr": simclr_spec, "moco": moco_spec}[request.param]
