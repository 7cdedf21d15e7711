import math

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from expunge.unlearning.catalog import IMAGENET_MEAN, IMAGENET_STD
from expunge.unlearning.data import views as module
from expunge.unlearning.data.randomness import uniforms
from expunge.unlearning.data.views import Views, crop_boxes, normalise, shift_hue

MANY = 20_000


def raw_views(size: int, seed: int = 0) -> Views:
    """Views without normalisation."""
    return Views(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), seed=seed)


def test_a_view_depends_on_seed_id_and_number_alone() -> None:
    images = torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8)
    ids = torch.randint(-(2**62), 2**62, (300,))
    views = Views(16, IMAGENET_MEAN, IMAGENET_STD, seed=5)
    whole = views(images, ids, 3)
    order = torch.randperm(300)[:40]
    again = Views(16, IMAGENET_MEAN, IMAGENET_STD, seed=5)(images[order], ids[order], 3)
    torch.testing.assert_close(again, whole[order])
    assert torch.equal(views(images, ids, 3), whole)


def test_several_views_at_once_are_those_of_single_calls() -> None:
    images = torch.randint(0, 256, (5, 3, 96, 96), dtype=torch.uint8)
    ids, views = torch.arange(5), Views(96, IMAGENET_MEAN, IMAGENET_STD, seed=5)
    single = torch.cat([views(images, ids, number) for number in (2, 0, 7)])
    torch.testing.assert_close(views.several(images, ids, (2, 0, 7)), single)


def test_seed_id_and_number_each_change_the_view() -> None:
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    one = torch.tensor([7])
    base = raw_views(32)(image, one, 0)
    others = [
        raw_views(32, seed=1)(image, one, 0),
        raw_views(32)(image, torch.tensor([8]), 0),
        raw_views(32)(image, one, 1),
    ]
    assert all(not torch.allclose(base, other) for other in others)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    draws = uniforms(3, torch.arange(MANY), 8)
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    tolerance = 5 / math.sqrt(MANY)
    assert (draws.mean(0) - 0.5).abs().max() < tolerance * math.sqrt(1 / 12)
    off = torch.corrcoef(draws.T) - torch.eye(8)
    assert off.abs().max() < tolerance
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(neighbours) < tolerance


@pytest.mark.parametrize("size", [16, 32, 224])
def test_crops_lie_inside_the_image_and_keep_scale_and_ratio(size: int) -> None:
    top, left, height, width = crop_boxes(uniforms(1, torch.arange(MANY), 22), size).unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= size
    assert (left + width).max() <= size
    assert min(height.min(), width.min()) >= 1
    scale = (height * width) / size**2
    rounding = 2 / (math.sqrt(0.1) * size)
    assert scale.min() > 0.1 * (1 - rounding)
    ratio = width / height
    assert 3 / 4 * (1 - rounding) < ratio.min()
    assert ratio.max() < 4 / 3 * (1 + rounding)


def test_crop_areas_follow_torchvisions_distribution() -> None:
    """Ten tries, the first that fits: areas near one are rarer than areas near a half."""
    ours = crop_boxes(uniforms(2, torch.arange(MANY), 22), 32)
    areas = (ours[:, 2] * ours[:, 3] / 1024).sort().values
    generator = torch.Generator().manual_seed(0)
    theirs = []
    for _ in range(MANY):
        for _ in range(10):
            u = torch.rand(2, generator=generator).tolist()
            area = 1024 * (0.1 + 0.9 * u[0])
            ratio = math.exp(math.log(3 / 4) + u[1] * math.log(16 / 9))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= 32 and h <= 32:
                break
        else:
            w = h = 32
        theirs.append(w * h / 1024)
    distance = (areas - torch.tensor(theirs).sort().values).abs().mean()
    assert distance < 0.01


def test_crop_equals_torchvisions_resized_crop() -> None:
    image = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    draws = uniforms(9, torch.arange(8), 23)
    draws[:, 22] = 1.0
    rows, columns = module._crop_weights(draws, 32)
    ours = module._separable(image.float(), rows, columns)
    for i, box in enumerate(crop_boxes(draws, 32).int().tolist()):
        theirs = reference.resized_crop(
            image[i].float(), *box, [32, 32], interpolation=2, antialias=True
        )
        torch.testing.assert_close(ours[i], theirs, atol=0.01, rtol=1e-4)


def test_half_of_the_views_are_flipped() -> None:
    draws = uniforms(4, torch.arange(MANY), 23)
    _, columns = module._crop_weights(draws[:2000], 16)
    positions = torch.arange(16.0)
    first, last = columns[:, 0] @ positions, columns[:, -1] @ positions
    assert (first > last).float().mean() == pytest.approx(0.5, abs=0.05)


def test_a_fifth_of_the_views_are_grey() -> None:
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).expand(4000, -1, -1, -1)
    made = raw_views(16)(images, torch.arange(4000), 0)
    spread = (made.amax(1) - made.amin(1)).amax(dim=(1, 2))
    assert (spread < 1e-5).float().mean() == pytest.approx(0.2, abs=0.03)


def test_four_fifths_of_the_views_are_jittered_and_the_rest_is_left_alone() -> None:
    """A flat colour survives crop, flip and no jitter."""
    images = torch.tensor([200, 120, 60], dtype=torch.uint8).view(1, 3, 1, 1)
    made = raw_views(16)(images.expand(4000, 3, 16, 16), torch.arange(4000), 1)
    colour = made[:, :, 0, 0]
    grey = (colour.amax(1) - colour.amin(1)) < 1e-5
    plain = torch.tensor([200, 120, 60]) / 255
    untouched = (colour - plain).abs().amax(1) < 1e-4
    assert untouched[~grey].float().mean() == pytest.approx(0.2, abs=0.03)


def test_hue_shift_equals_torchvisions() -> None:
    images = torch.rand(6, 3, 8, 8)
    for shift in (-0.1, 0.0, 0.07):
        ours = shift_hue(images, torch.full((6, 1, 1, 1), shift))
        torch.testing.assert_close(ours, reference.adjust_hue(images, shift), atol=2e-4, rtol=1e-3)


def test_jitter_equals_torchvisions_steps_in_the_drawn_order() -> None:
    images = torch.rand(5, 3, 8, 8)
    draws = uniforms(6, torch.arange(5), 6)
    draws[:, 0] = 0.0
    order = ("contrast", "hue", "saturation", "brightness")
    ours = module._jitter(images.clone(), draws, order)
    for i in range(5):
        factors = [float(0.6 + 0.8 * draws[i, c]) for c in (1, 2, 3)]
        image = reference.adjust_contrast(images[i], factors[1])
        image = reference.adjust_hue(image, float(-0.1 + 0.2 * draws[i, 4]))
        image = reference.adjust_saturation(image, factors[2])
        image = reference.adjust_brightness(image, factors[0])
        torch.testing.assert_close(ours[i], image, atol=2e-3, rtol=1e-2)


def test_large_images_are_blurred_half_of_the_time_and_small_ones_never() -> None:
    noise = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    views = raw_views(96)
    assert views.blur
    assert not raw_views(32).blur
    weights = module._blur_weights(uniforms(1, torch.arange(2000), 2), 96)
    sharp = (weights == torch.eye(96)).flatten(1).all(1)
    assert sharp.float().mean() == pytest.approx(0.5, abs=0.05)
    assert views(noise, torch.tensor([1]), 0).isfinite().all()


def test_normalise_gives_the_plain_view() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = reference.normalize(images / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(normalise(images, IMAGENET_MEAN, IMAGENET_STD), expected)
