import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.formats.archives import ShardError
from expunge.unlearning.data.image_set import ImageSet, load_shards, sample_id


def png(size: tuple[int, int], seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_shards_are_decoded_in_order_with_labels_and_ids(tmp_path: Path) -> None:
    images = [png((16, 16), seed) for seed in range(3)]
    first = shard(
        tmp_path / "0.tar",
        {"a.png": images[0], "a.cls": b"4", "b.png": images[1], "b.cls": b"7"},
    )
    second = shard(tmp_path / "1.tar", {"c.png": images[2], "c.cls": b"0"})
    loaded = load_shards([first, second], 16)
    assert loaded.keys == ["a", "b", "c"]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [4, 7, 0]
    assert loaded.ids.tolist() == [sample_id(hashlib.sha256(i).hexdigest()) for i in images]
    for tensor, encoded in zip(loaded.images, images, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(encoded)))
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (24, 41), (8, 8), (200, 16)])
def test_other_sizes_are_resized_and_cropped_in_the_centre(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = shard(tmp_path / "0.tar", {"a.png": png(size, 0)})
    loaded = load_shards([path], 16)
    assert loaded.images.shape == (1, 3, 16, 16)
    assert loaded.labels is None


def test_a_broken_image_is_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", {"a.png": png((16, 16), 0)[:60]})
    with pytest.raises(ShardError):
        load_shards([path], 16)


def test_sample_ids_are_signed_64_bit_numbers() -> None:
    assert sample_id("00" * 31 + "ff") == 0
    assert sample_id("ff" * 32) == -1
    assert sample_id("80" + "00" * 31) == -(2**63)


def test_subsets_and_concatenation_keep_samples_together(
    make_images: Callable[..., ImageSet],
) -> None:
    images = make_images(6)
    again = ImageSet.concat([images.subset([4, 1]), images.subset([0])])
    assert again.keys == ["0-4", "0-1", "0-0"]
    assert torch.equal(again.images, images.images[[4, 1, 0]])
    assert torch.equal(again.ids, images.ids[[4, 1, 0]])
    assert again.labels is not None
    assert again.labels.tolist() == [1, 1, 0]


def test_mixed_labels_are_dropped(make_images: Callable[..., ImageSet]) -> None:
    labelled = make_images(2)
    plain = ImageSet(labelled.images, labelled.ids, labelled.keys)
    assert ImageSet.concat([labelled, plain]).labels is None


def test_parts_of_different_length_are_refused(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(2)
    with pytest.raises(ValueError, match="differ in length"):
        ImageSet(images.images, images.ids[:1], images.keys)
    with pytest.raises(ValueError, match="uint8"):
        ImageSet(images.images.float(), images.ids, images.keys)
