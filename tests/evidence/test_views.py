"""A view is let through if it was made from the registered image, and not otherwise."""

import numpy as np
import pytest
from PIL import Image

from expunge.evidence.views import MIN_CORRELATION, Bytes, agreement

SIZE = 32


def pictures(count: int, seed: int = 0) -> Bytes:
    """(N, 32, 32, 3) smooth images with coarse and fine structure, as photographs have."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
                    (SIZE, SIZE), Image.Resampling.BICUBIC
                ),
                dtype=np.float32,
            )
            for cells in (3, 8, 16)
        ]
        found.append(np.clip(sum(layers) / 3, 0, 255).astype(np.uint8))
    return np.stack(found)


def boxes(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sides = rng.integers(12, SIZE + 1, (count, 2))
    corners = (rng.random((count, 2)) * (SIZE - sides + 1)).astype(int)
    return np.concatenate([corners, sides], axis=1)


def made_at_home(images: Bytes, crops: np.ndarray, flips: np.ndarray) -> Bytes:
    """Views by another program: Pillow's crop, resize and flip, with other brightness and contrast."""
    found = []
    for image, (top, left, height, width), flip in zip(images, crops, flips, strict=True):
        view = Image.fromarray(image).crop((left, top, left + width, top + height))
        view = view.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found.append(np.clip(np.asarray(view) * 0.8 + 30, 0, 255).astype(np.uint8))
    return np.stack(found)


@pytest.fixture
def made() -> tuple[Bytes, Bytes, np.ndarray, np.ndarray]:
    images, crops = pictures(200), boxes(200)
    flips = np.random.default_rng(2).random(200) < 0.5
    return made_at_home(images, crops, flips), images, crops, flips


def test_views_of_the_image_pass(made: tuple[Bytes, Bytes, np.ndarray, np.ndarray]) -> None:
    assert agreement(*made).made_from.mean() >= 0.99


def test_views_of_other_images_do_not(
    made: tuple[Bytes, Bytes, np.ndarray, np.ndarray],
) -> None:
    views, images, crops, flips = made
    assert not agreement(np.roll(views, 1, axis=0), images, crops, flips).made_from.any()


def test_nor_do_views_of_another_crop_or_the_other_way_round(
    made: tuple[Bytes, Bytes, np.ndarray, np.ndarray],
) -> None:
    views, images, crops, flips = made
    assert agreement(views, images, crops, ~flips).made_from.mean() < 0.02
    assert agreement(views, images, np.roll(crops, 1, axis=0), flips).made_from.mean() < 0.02


def test_a_flat_crop_is_refused_though_it_agrees() -> None:
    images = np.full((1, SIZE, SIZE, 3), 100, dtype=np.uint8)
    images[0, 0, 0] = 102
    whole, no = np.array([[0, 0, SIZE, SIZE]]), np.array([False])
    found = agreement(images, images, whole, no)
    assert found.correlation[0] > MIN_CORRELATION
    assert not found.made_from[0]


def test_an_image_agrees_with_itself_wholly() -> None:
    images = pictures(3)
    whole = np.tile([0, 0, SIZE, SIZE], (3, 1))
    found = agreement(images, images, whole, np.zeros(3, dtype=bool))
    np.testing.assert_allclose(found.correlation, 1, atol=1e-5)


def test_crops_are_those_that_a_slow_loop_makes() -> None:
    image = pictures(1)
    crop = np.array([[3, 5, 20, 16]])
    top, left, height, width = crop[0]
    grey = image[0].astype(float) @ [0.299, 0.587, 0.114]
    slow = np.empty((SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            y = min(max((i + 0.5) * height / SIZE - 0.5, 0), height - 1) + top
            x = min(max((j + 0.5) * width / SIZE - 0.5, 0), width - 1) + left
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, SIZE - 1), min(x0 + 1, SIZE - 1)
            above = grey[y0, x0] * (1 - x % 1) + grey[y0, x1] * (x % 1)
            below = grey[y1, x0] * (1 - x % 1) + grey[y1, x1] * (x % 1)
            slow[i, j] = above * (1 - y % 1) + below * (y % 1)
    view = np.repeat(slow[:, :, None], 3, axis=2).round().astype(np.uint8)
    assert agreement(view[None], image, crop, np.array([False])).correlation[0] > 0.9999
