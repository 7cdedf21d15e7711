"""Turns a folder of images into WebDataset shards, or finds shards that are there. Uploads nothing."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.formats.archives import ShardError
from expunge.formats.shards import (
    IMAGE_SUFFIXES,
    Sample,
    check_structure,
    decode_image,
    make_sample,
    write_shard,
)

SAMPLES_PER_SHARD = 5000
_SUFFIX_OF = {**{f".{suffix}": suffix for suffix in IMAGE_SUFFIXES}, ".jpeg": "jpg"}
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_\-]")


class PackingError(ValueError):
    """The folder or file cannot become shards; the message names the file."""


@dataclass(frozen=True)
class Found:
    """One image file; `label` is the position of its class folder among the sorted ones."""

    path: Path
    key: str
    label: int | None


def shards_of(source: Path, scratch: Path, *, name: str = "data") -> list[Path]:
    """The shards that `source` stands for, in upload order.

    A tar file stands for itself, a folder of tar files for those. A folder of images is packed into
    `scratch`; if all its images lie in sub-folders, these are the classes.

    Raises:
        PackingError: nothing usable is there, or a file breaks a rule of the format.
    """
    tars = [source] if source.suffix == ".tar" else sorted(source.glob("*.tar"))
    if source.is_dir() and not tars:
        return pack_images(source, scratch, name=name)
    if not source.exists():
        raise PackingError(f"{source} does not exist")
    if not tars:
        raise PackingError(f"{source} is neither a folder nor a .tar file")
    for tar in tars:
        try:
            check_structure(tar)
        except ShardError as error:
            raise PackingError(f"{tar}: {error}") from error
    return tars


def pack_images(
    source: Path, scratch: Path, *, name: str = "data", per_shard: int = SAMPLES_PER_SHARD
) -> list[Path]:
    """Pack the images under `source` into `scratch`/`name`-00.tar …, in order of their names.

    Raises:
        PackingError: no image, two images of one key, or an image that cannot be read.
    """
    found = find_images(source)
    shards: list[Path] = []
    for start in range(0, len(found), per_shard):
        path = scratch / f"{name}-{len(shards):02d}.tar"
        write_shard(path, _samples(found[start : start + per_shard]))
        shards.append(path)
    return shards


def find_images(source: Path) -> list[Found]:
    """The images under `source` in order of their names, with keys and class labels."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIX_OF)
    paths = [path for path in paths if path.is_file() and not _hidden(path, source)]
    if not paths:
        allowed = ", ".join(sorted(_SUFFIX_OF))
        raise PackingError(f"{source} holds no image ({allowed}) and no .tar file")
    classes = _classes(source, paths)
    found: dict[str, Found] = {}
    for path in paths:
        relative = path.relative_to(source).with_suffix("")
        key = "/".join(_key_part(part) for part in relative.parts)
        if key in found:
            raise PackingError(f"{path} and {found[key].path} both have the key {key!r}")
        label = classes.index(relative.parts[0]) if classes else None
        found[key] = Found(path, key, label)
    return list(found.values())


def _classes(source: Path, paths: Sequence[Path]) -> list[str]:
    if any(path.parent == source for path in paths):
        return []
    return sorted({path.relative_to(source).parts[0] for path in paths})


def _samples(found: Sequence[Found]) -> Iterator[Sample]:
    for image in found:
        data = image.path.read_bytes()
        suffix = _SUFFIX_OF[image.path.suffix.lower()]
        try:
            decode_image(data, suffix)
        except ShardError as error:
            raise PackingError(f"{image.path}: {error}") from error
        caption = image.path.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8") if caption.is_file() else None
        yield make_sample(image.key, suffix, data, image.label, text)


def _key_part(part: str) -> str:
    """The part with everything a shard's names cannot hold replaced; never starts with '-'."""
    plain = _NOT_IN_KEYS.sub("_", part)
    return f"_{plain}" if plain.startswith("-") else plain


def _hidden(path: Path, source: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(source).parts)
