"""Folders of images become shards; the same folder always becomes the same bytes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.client.packing import PackingError, find_images, pack_images, shards_of
from expunge.formats.shards import iter_samples


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)


def test_class_folders_become_labels_in_order_of_their_names(tmp_path: Path) -> None:
    for name in ("dog/b.png", "cat/a.png", "cat/c.jpeg"):
        picture(tmp_path / "photos" / name)
    (shard,) = pack_images(tmp_path / "photos", tmp_path)
    samples = [(sample.key, sample.suffix, sample.label) for sample in iter_samples(shard)]
    assert samples == [("cat/a", "png", 0), ("cat/c", "jpg", 0), ("dog/b", "png", 1)]


def test_images_beside_folders_have_no_label(tmp_path: Path) -> None:
    for name in ("a.png", "more/b.webp"):
        picture(tmp_path / "photos" / name)
    (shard,) = pack_images(tmp_path / "photos", tmp_path)
    assert [sample.label for sample in iter_samples(shard)] == [None, None]


def test_the_image_bytes_are_untouched_and_captions_go_along(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.jpg", 90)
    (tmp_path / "photos" / "a.txt").write_text("grau", encoding="utf-8")
    (shard,) = pack_images(tmp_path / "photos", tmp_path)
    (sample,) = iter_samples(shard)
    assert sample.image == (tmp_path / "photos" / "a.jpg").read_bytes()
    assert sample.caption == "grau"


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    for index in range(5):
        picture(tmp_path / "photos" / f"{index}.png", index)
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    (first,) = pack_images(tmp_path / "photos", tmp_path, name="first")
    (second,) = pack_images(tmp_path / "copy", tmp_path, name="second")
    assert first.read_bytes() == second.read_bytes()


def test_many_images_fill_several_shards(tmp_path: Path) -> None:
    for index in range(5):
        picture(tmp_path / "photos" / f"{index}.png", index)
    shards = pack_images(tmp_path / "photos", tmp_path, per_shard=2)
    assert [shard.name for shard in shards] == ["data-00.tar", "data-01.tar", "data-02.tar"]
    assert [len(list(iter_samples(shard))) for shard in shards] == [2, 2, 1]


def test_names_that_shards_cannot_hold_are_made_plain(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "my dog.v2.png")
    picture(tmp_path / "photos" / "-x.png")
    assert [image.key for image in find_images(tmp_path / "photos")] == ["_-x", "my_dog_v2"]


def test_two_images_of_one_key_are_refused_by_name(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "photos" / "a.jpg")
    with pytest.raises(PackingError, match=r"a\.png and .*a\.jpg both have the key 'a'"):
        find_images(tmp_path / "photos")


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "photos" / ".thumbnails" / "a.png")
    assert [image.key for image in find_images(tmp_path / "photos")] == ["a"]


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    with pytest.raises(PackingError, match=r"bad\.png: the image is not a readable \.png file"):
        pack_images(tmp_path / "photos", tmp_path)


def test_shards_are_taken_as_they_are_and_checked(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png")
    shard = pack_images(tmp_path / "photos", tmp_path)[0]
    folder = tmp_path / "shards"
    folder.mkdir()
    shutil.copy(shard, folder / "train-00.tar")
    assert shards_of(folder, tmp_path) == [folder / "train-00.tar"]
    assert shards_of(folder / "train-00.tar", tmp_path) == [folder / "train-00.tar"]
    (folder / "train-00.tar").write_bytes(shard.read_bytes()[:700])
    with pytest.raises(PackingError, match=r"train-00\.tar: the archive"):
        shards_of(folder, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "does not exist"),
        ("empty", "holds no image"),
        ("notes.md", "neither a folder nor a .tar file"),
    ],
)
def test_what_cannot_be_uploaded_is_said(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(PackingError, match=message):
        shards_of(tmp_path / name, tmp_path)
