"""A tar of views that an owner made at home, each with the sample and the crop that it was made from.

Reads structure and descriptions; decodes a view only when asked. Never trusts that a view is what it says.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.formats.archives import Entry, ShardError, entries
from expunge.formats.shards import decode_image

IMAGE_SUFFIX, DESCRIPTION_SUFFIX = "png", "json"
MAX_VIEW_BYTES = 2**20
MAX_DESCRIPTION_BYTES = 2**10
SIZES = {IMAGE_SUFFIX: MAX_VIEW_BYTES, DESCRIPTION_SUFFIX: MAX_DESCRIPTION_BYTES}
MIN_VIEWS, MAX_VIEWS = 2, 32
MEMBERS = {"sample", "crop", "flip"}

_STEM = re.compile(r"(.+)__([0-9]{1,3})")
_SAMPLE = re.compile(r"(dst_[0-9a-f]{32})/(.+)")

Bytes = NDArray[np.uint8]


class ViewError(ValueError):
    """The tar breaks a rule; the message names the member."""


@dataclass(frozen=True, slots=True)
class View:
    """One view as it is described: its number among its sample's, its crop in pixels of the sample's image."""

    member: str
    sample: str
    """`dst_…/key`."""
    number: int
    crop: tuple[int, int, int, int]
    """Top, left, height, width."""
    flip: bool
    offset: int
    size: int

    @property
    def dataset_id(self) -> str:
        """The sample's data set."""
        return self.sample.partition("/")[0]


def index_views(
    path: Path, image_size: int, *, max_samples: int, max_views: int
) -> list[list[View]]:
    """All views of a tar, sample by sample in the order of first appearance, numbered from 0 each.

    Members are `<name>__<n>.png` beside `<name>__<n>.json`, which holds `{"sample": "dst_…/key",
    "crop": [top, left, height, width], "flip": false}`. Every sample has equally many views.

    Raises:
        ViewError: the first rule that the file breaks, of tars, names, descriptions or numbers.
    """
    found: dict[str, dict[int, View]] = {}
    count = 0
    try:
        for view in _views(path, image_size):
            of_sample = found.setdefault(view.sample, {})
            if view.number in of_sample:
                raise ViewError(f"{view.member}: {view.sample} has a view {view.number} already")
            of_sample[view.number] = view
            count += 1
            if len(found) > max_samples or count > max_views:
                raise ViewError(
                    f"{view.member}: at most {max_samples:,} samples and {max_views:,} views "
                    "together are accepted"
                )
    except ShardError as error:
        raise ViewError(str(error)) from error
    if not found:
        raise ViewError("the tar holds no view")
    return _numbered(found)


def _numbered(found: dict[str, dict[int, View]]) -> list[list[View]]:
    views = len(next(iter(found.values())))
    if not MIN_VIEWS <= views <= MAX_VIEWS:
        raise ViewError(f"{MIN_VIEWS} to {MAX_VIEWS} views a sample are accepted, not {views}")
    for sample, of_sample in found.items():
        if sorted(of_sample) != list(range(views)):
            raise ViewError(
                f"{next(iter(of_sample.values())).member}: the views of {sample} are not numbered "
                f"0 to {views - 1}, as those of the first sample are"
            )
    return [[of_sample[number] for number in range(views)] for of_sample in found.values()]


def _views(path: Path, image_size: int) -> Iterator[View]:
    with path.open("rb") as file, path.open("rb") as contents:
        waiting: dict[str, Entry] = {}
        for entry in entries(file, path.stat().st_size, SIZES):
            other = waiting.pop(entry.key, None)
            if other is None:
                waiting[entry.key] = entry
            elif other.suffix == entry.suffix:
                raise ViewError(f"{entry.key}.{entry.suffix} is there twice")
            else:
                image, text = (entry, other) if entry.suffix == IMAGE_SUFFIX else (other, entry)
                contents.seek(text.offset)
                yield _described(image, contents.read(text.size), image_size)
            if len(waiting) > 1:
                break
        if waiting:
            alone = next(iter(waiting.values()))
            raise ViewError(
                f"{alone.key}.{alone.suffix}: a view's .png and .json stand next to each other"
            )


def _described(image: Entry, text: bytes, image_size: int) -> View:
    member = f"{image.key}.{IMAGE_SUFFIX}"
    stem = _STEM.fullmatch(image.key)
    if stem is None:
        raise ViewError(f"{member}: a view's name is <name>__<n>.png")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ViewError(f"{member}: its description is not JSON") from error
    if not isinstance(told, dict) or set(told) != MEMBERS:
        raise ViewError(f"{member}: its description has the members {', '.join(sorted(MEMBERS))}")
    sample, flip = told["sample"], told["flip"]
    if not isinstance(sample, str) or not _SAMPLE.fullmatch(sample):
        raise ViewError(f"{member}: sample is dst_…/key")
    if not isinstance(flip, bool):
        raise ViewError(f"{member}: flip is true or false")
    crop = _box(told["crop"], image_size)
    if crop is None:
        raise ViewError(
            f"{member}: crop is [top, left, height, width] in whole pixels of an image of "
            f"{image_size} by {image_size}"
        )
    number = int(stem.group(2))
    return View(member, sample, number, crop, flip, image.offset, image.size)


def _box(crop: Any, size: int) -> tuple[int, int, int, int] | None:
    if not isinstance(crop, list) or len(crop) != 4 or any(type(each) is not int for each in crop):  # noqa: PLR2004
        return None
    top, left, height, width = crop
    fits = top >= 0 and left >= 0 and height >= 1 and width >= 1
    inside = top + height <= size and left + width <= size
    return (top, left, height, width) if fits and inside else None


def read_views(path: Path, views: Sequence[View], image_size: int) -> Bytes:
    """(N, S, S, 3) uint8 pixels of views of the tar.

    Raises:
        ViewError: one is not a PNG of S by S pixels.
    """
    found = np.empty((len(views), image_size, image_size, 3), dtype=np.uint8)
    with path.open("rb") as file:
        for place, view in enumerate(views):
            file.seek(view.offset)
            try:
                image = decode_image(file.read(view.size), IMAGE_SUFFIX)
            except ShardError as error:
                raise ViewError(f"{view.member}: {error}") from error
            if image.size != (image_size, image_size):
                raise ViewError(
                    f"{view.member} has {image.size[0]} by {image.size[1]} pixels; the model takes "
                    f"{image_size} by {image_size}"
                )
            found[place] = np.asarray(image)
    return found


def write_views(path: Path, views: Iterable[tuple[View, bytes]]) -> None:
    """Write views, each with its PNG, as a tar that `index_views` accepts; offsets and sizes are not used."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for view, image in views:
            told = {"sample": view.sample, "crop": list(view.crop), "flip": view.flip}
            name = view.member.removesuffix(f".{IMAGE_SUFFIX}")
            _add(archive, f"{name}.{IMAGE_SUFFIX}", image)
            _add(archive, f"{name}.{DESCRIPTION_SUFFIX}", json.dumps(told).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
