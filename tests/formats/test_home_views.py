"""Tars of views made at home: what is read, and what is refused with the member's name."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from expunge.formats.home_views import View, ViewError, index_views, read_views, write_views

SIZE = 16
DATASET = f"dst_{'a' * 32}"


def png(seed: int, size: int = SIZE) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def view(sample: int = 0, number: int = 0, **changes: Any) -> View:
    fields: dict[str, Any] = {
        "member": f"s{sample}__{number}.png",
        "sample": f"{DATASET}/cats/{sample}",
        "number": number,
        "crop": (0, 2, 8, 10),
        "flip": bool(number % 2),
        "offset": 0,
        "size": 0,
    }
    return View(**fields | changes)


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def described(**changes: Any) -> bytes:
    told = {"sample": f"{DATASET}/cats/0", "crop": [0, 0, 8, 8], "flip": False} | changes
    return json.dumps({name: value for name, value in told.items() if value is not ...}).encode()


def index(path: Path, max_samples: int = 4, max_views: int = 8) -> list[list[View]]:
    return index_views(path, SIZE, max_samples=max_samples, max_views=max_views)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "views.tar"
    wanted = [view(sample, number) for sample in (1, 0) for number in range(3)]
    write_views(path, [(each, png(place)) for place, each in enumerate(wanted)])
    found = index(path)
    assert [[each.sample for each in of_sample] for of_sample in found] == [
        [f"{DATASET}/cats/1"] * 3,
        [f"{DATASET}/cats/0"] * 3,
    ]
    flat = [each for of_sample in found for each in of_sample]
    assert [(each.number, each.crop, each.flip) for each in flat] == [
        (each.number, each.crop, each.flip) for each in wanted
    ]
    pixels = read_views(path, flat, SIZE)
    for place in range(6):
        np.testing.assert_array_equal(pixels[place], np.asarray(Image.open(io.BytesIO(png(place)))))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a__0.png", png(0))], "a__0.png: a view's .png and .json"),
        ([("a__0.png", png(0)), ("b__0.png", png(0))], "a__0.png: a view's .png and .json"),
        ([("a__0.png", png(0)), ("a__0.jpg", b"")], "suffix"),
        ([("a__0.png", png(0)), ("a__0.pkl", b"")], "suffix"),
        ([("a.png", png(0)), ("a.json", described())], "a.png: a view's name"),
        ([("a__0.png", png(0)), ("a__0.json", b"{")], "a__0.png: its description is not JSON"),
        ([("a__0.png", png(0)), ("a__0.json", b"[" * 1000)], "not JSON"),
        ([("a__0.png", png(0)), ("a__0.json", described(more=1))], "members crop, flip, sample"),
        ([("a__0.png", png(0)), ("a__0.json", described(flip=...))], "members"),
        ([("a__0.png", png(0)), ("a__0.json", described(flip=1))], "flip is true or false"),
        ([("a__0.png", png(0)), ("a__0.json", described(sample="x"))], "sample is dst_"),
        ([("a__0.png", png(0)), ("a__0.json", described(crop=[0, 0, 8]))], "crop is"),
        ([("a__0.png", png(0)), ("a__0.json", described(crop=[0, 9, 8, 8]))], "crop is"),
        ([("a__0.png", png(0)), ("a__0.json", described(crop=[0, 0, 0, 8]))], "crop is"),
        ([("a__0.png", png(0)), ("a__0.json", described(crop=[0, 0, True, 8]))], "crop is"),
        ([("a__0.png", png(0)), ("a__0.json", described(crop=[0.5, 0, 8, 8]))], "crop is"),
        ([("../a__0.png", png(0))], "leaves the archive|not accepted"),
        ([("a__0.png", png(0)), ("a__0.json", b" " * 2000)], "2,000 bytes"),
        ([("a__0.png", png(0)), ("a__0.json", described())], "2 to 32 views"),
        (
            [
                ("a__1.png", png(0)),
                ("a__1.json", described()),
                ("a__2.png", png(0)),
                ("a__2.json", described()),
            ],
            "a__1.png: the views of .* are not numbered 0 to 1",
        ),
        (
            [
                ("a__1.png", png(0)),
                ("a__1.json", described()),
                ("b__1.png", png(0)),
                ("b__1.json", described()),
            ],
            "b__1.png: .* has a view 1 already",
        ),
        ([], "no view"),
    ],
)
def test_what_breaks_a_rule_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], words: str
) -> None:
    with pytest.raises(ViewError, match=words):
        index(tar(tmp_path / "views.tar", members))


def test_too_many_are_refused_before_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "views.tar"
    write_views(path, [(view(sample, 0), png(0)) for sample in range(5)])
    with pytest.raises(ViewError, match=r"s2__0.png: at most 2 samples"):
        index(path, max_samples=2)
    with pytest.raises(ViewError, match="3 views"):
        index(path, max_samples=9, max_views=3)


def test_what_is_no_tar_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "views.tar"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(ViewError, match="tar"):
        index(path)


@pytest.mark.parametrize("data", [b"no image", png(0, size=8)])
def test_a_view_has_the_models_size(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "views.tar"
    write_views(path, [(view(0, number), data) for number in range(2)])
    with pytest.raises(ViewError, match=r"s0__0.png"):
        read_views(path, index(path)[0], SIZE)
