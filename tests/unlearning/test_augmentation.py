"""Training views by framework: flips, crops and flips, contrastive views."""

import pytest
import torch
from torch import Tensor

from expunge.unlearning.catalog import CLIP, EncoderSpec
from expunge.unlearning.data.augmentation import (
    CROP_PADDING,
    crop_and_flip,
    flip,
    training_views,
)
from expunge.unlearning.data.views import Views, normalise


def some_images(count: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, size, size), generator=generator).to(torch.uint8)


def slow_crop_and_flip(image: Tensor, top: int, left: int, *, mirrored: bool) -> Tensor:
    """Pixel by pixel; what lies outside the image is black."""
    size = image.shape[-1]
    out = torch.zeros_like(image)
    for row in range(size):
        for column in range(size):
            source_row = row + top - CROP_PADDING
            seen = size - 1 - column if mirrored else column
            source_column = seen + left - CROP_PADDING
            if 0 <= source_row < size and 0 <= source_column < size:
                out[:, row, column] = image[:, source_row, source_column]
    return out


@pytest.mark.parametrize("size", [5, 16])
def test_crops_and_flips_equal_the_slow_twin(size: int) -> None:
    images = some_images(12, size)
    draws = torch.rand(12, 3, generator=torch.Generator().manual_seed(1))
    draws[0], draws[1] = torch.zeros(3), torch.full((3,), 1 - 2**-24)
    changed = crop_and_flip(images, draws)
    assert changed.dtype == torch.uint8
    for image, draw, got in zip(images, draws.tolist(), changed, strict=True):
        top, left = int(draw[0] * 9), int(draw[1] * 9)
        slow = slow_crop_and_flip(image, top, left, mirrored=draw[2] < 0.5)
        assert torch.equal(got, slow)


def test_every_offset_and_both_directions_are_drawn() -> None:
    """Offsets are 0 to 8, each as likely."""
    draws = torch.rand(4000, 3, generator=torch.Generator().manual_seed(2))
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4000, 3, -1, -1)
    kinds = {tuple(each.flatten().tolist()) for each in crop_and_flip(image, draws)[:, 0]}
    assert len(kinds) == 9 * 9 * 2


def test_flips_mirror_left_to_right_below_a_half() -> None:
    images = some_images(3)
    changed = flip(images, torch.tensor([0.49, 0.5, 0.0]))
    assert torch.equal(changed[0], images[0].flip(2))
    assert torch.equal(changed[1], images[1])
    assert torch.equal(changed[2], images[2].flip(2))


def test_clip_sees_images_as_they_are_or_mirrored() -> None:
    spec = EncoderSpec(objective=CLIP(), image_size=16)
    images, ids = some_images(64), torch.arange(64)
    seen = training_views(spec, seed=3)(images, ids, 0)
    plain = normalise(images, spec.mean, spec.std)
    mirrored = (seen == plain.flip(3)).flatten(1).all(1)
    assert (mirrored | (seen == plain).flatten(1).all(1)).all()
    assert 16 < int(mirrored.sum()) < 48


def test_supervised_training_sees_crops_of_the_padded_image(supervised_spec: EncoderSpec) -> None:
    images, ids = some_images(64), torch.arange(64)
    black = normalise(
        torch.zeros(1, 3, 1, 1, dtype=torch.uint8), supervised_spec.mean, supervised_spec.std
    )
    seen = training_views(supervised_spec, seed=3)(images, ids, 0)
    padded = (seen == black).all(1).flatten(1).any(1)
    # Only the one offset in 81 that is the centre shows no padding.
    assert int(padded.sum()) > 56


def test_contrastive_frameworks_see_the_contrastive_views(
    simclr_spec: EncoderSpec, byol_spec: EncoderSpec
) -> None:
    images, ids = some_images(8), torch.arange(8)
    expected = Views(16, simclr_spec.mean, simclr_spec.std, seed=5)(images, ids, 7)
    for spec in (simclr_spec, byol_spec):
        assert torch.equal(training_views(spec, seed=5)(images, ids, 7), expected)


def test_a_view_depends_on_seed_sample_and_number_alone(supervised_spec: EncoderSpec) -> None:
    for spec in (supervised_spec, EncoderSpec(objective=CLIP(), image_size=16)):
        images, ids = some_images(32), torch.arange(32)
        views = training_views(spec, seed=1)
        whole = views(images, ids, 4)
        assert torch.equal(whole[10:20], views(images[10:20], ids[10:20], 4))
        assert not torch.equal(whole, views(images, ids, 5))
        assert not torch.equal(whole, views(images, ids + 32, 4))
        assert not torch.equal(whole, training_views(spec, seed=2)(images, ids, 4))
