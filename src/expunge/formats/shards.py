"""WebDataset tar shards: samples in a strict archive, a deterministic writer and the index of a sealed shard.

Never extracts to disk and never unpickles; a file that breaks a rule is refused whole.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from expunge.formats.archives import Entry, ShardError, entries

IMAGE_SUFFIXES: dict[str, str] = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
LABEL_SUFFIX = "cls"
CAPTION_SUFFIX = "txt"

MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGE_PIXELS = 4096 * 4096
MAX_LABEL_BYTES = 20
MAX_CAPTION_BYTES = 16 * 2**10
SIZES: Mapping[str, int] = dict.fromkeys(IMAGE_SUFFIXES, MAX_IMAGE_BYTES) | {
    LABEL_SUFFIX: MAX_LABEL_BYTES,
    CAPTION_SUFFIX: MAX_CAPTION_BYTES,
}
"""Most bytes of a shard's member, by suffix; others are refused."""
MAX_SAMPLES_PER_SHARD = 1_000_000
LABEL_RANGE = range(2**31)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as stored: the encoded image's bytes, their SHA-256 (hex), optional label and caption."""

    key: str
    suffix: str
    image: bytes
    sha256: str
    label: int | None = None
    caption: str | None = None
    offset: int = 0
    """Position of the image's first byte in the shard file."""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """What the index of a sealed data set keeps of one sample; offset and size in bytes, width and height in pixels."""

    key: str
    shard: str
    suffix: str
    offset: int
    size: int
    sha256: str
    width: int
    height: int
    label: int | None
    caption: str | None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return asdict(self)


def check_structure(path: Path) -> int:
    """Check the shard's names, kinds, sizes and grouping without decoding images; return the number of samples.

    Raises:
        ShardError: the first rule that the file breaks.
    """
    with path.open("rb") as file:
        return sum(1 for _ in _grouped(file, path.stat().st_size))


def iter_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a shard in file order, images still encoded.

    Raises:
        ShardError: the first rule that the file breaks (labels and captions included, image content not).
    """
    with path.open("rb") as file:
        for group in _grouped(file, path.stat().st_size):
            yield _read_sample(file, group)


def index_shard(path: Path, name: str) -> list[SampleRecord]:
    """Validate every sample of a shard, images decoded, and return their index records in file order.

    Raises:
        ShardError: the first rule that the file breaks.
    """
    records = []
    for sample in iter_samples(path):
        try:
            width, height = decode_image(sample.image, sample.suffix).size
        except ShardError as error:
            raise ShardError(error.code, f"sample {sample.key!r}: {error}") from error
        records.append(
            SampleRecord(
                key=sample.key,
                shard=name,
                suffix=sample.suffix,
                offset=sample.offset,
                size=len(sample.image),
                sha256=sample.sha256,
                width=width,
                height=height,
                label=sample.label,
                caption=sample.caption,
            )
        )
    return records


def decode_image(data: bytes, suffix: str) -> Image.Image:
    """Decode one still image to RGB; only the format that the suffix names is tried.

    Raises:
        ShardError: `image-too-large` before any pixel is decoded, or `image-undecodable`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[IMAGE_SUFFIXES[suffix]]) as image:
            _check_still(image)
            return image.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ShardError("image-too-large", _too_many_pixels(None)) from error
    except ShardError:
        raise
    except UnidentifiedImageError as error:
        raise ShardError(
            "image-undecodable", f"the image is not a readable .{suffix} file"
        ) from error
    # Pillow's decoders raise many kinds of error on damaged data (SyntaxError and struct.error among them).
    except Exception as error:
        raise ShardError(
            "image-undecodable", f"the image is not a readable .{suffix} file ({error})"
        ) from error


def _check_still(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ShardError("image-too-large", _too_many_pixels(width * height))
    if getattr(image, "n_frames", 1) != 1:
        raise ShardError("image-undecodable", "animated images are not accepted")


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write samples as a shard whose bytes depend on nothing but them; return their number."""
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            count += 1
            _add(archive, f"{sample.key}.{sample.suffix}", sample.image)
            if sample.label is not None:
                _add(archive, f"{sample.key}.{LABEL_SUFFIX}", str(sample.label).encode())
            if sample.caption is not None:
                _add(archive, f"{sample.key}.{CAPTION_SUFFIX}", sample.caption.encode())
    return count


def make_sample(
    key: str, suffix: str, image: bytes, label: int | None = None, caption: str | None = None
) -> Sample:
    """A sample from its parts, digest computed."""
    return Sample(key, suffix, image, hashlib.sha256(image).hexdigest(), label, caption)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _too_many_pixels(pixels: int | None) -> str:
    found = f"{pixels:,} pixels" if pixels is not None else "too many pixels"
    return f"the image has {found}; at most {MAX_IMAGE_PIXELS:,} are accepted"


def _grouped(file: IO[bytes], size: int) -> Iterator[list[Entry]]:
    """Adjacent entries of one key, each group checked to hold exactly one image."""
    seen: set[str] = set()
    group: list[Entry] = []
    for entry in entries(file, size, SIZES):
        if group and entry.key == group[0].key:
            if any(entry.suffix == other.suffix for other in group):
                raise ShardError(
                    "duplicate-key", f"{entry.key}.{entry.suffix} is in the shard twice"
                )
            group.append(entry)
            continue
        if group:
            yield _one_image(group)
        if entry.key in seen:
            raise ShardError(
                "duplicate-key",
                f"key {entry.key!r} appears twice; the files of one sample stand together, once",
            )
        if len(seen) == MAX_SAMPLES_PER_SHARD:
            raise ShardError(
                "too-large", f"a shard holds at most {MAX_SAMPLES_PER_SHARD:,} samples"
            )
        seen.add(entry.key)
        group = [entry]
    if not group:
        raise ShardError("empty", "the shard holds no sample")
    yield _one_image(group)


def _one_image(group: list[Entry]) -> list[Entry]:
    images = [entry.suffix for entry in group if entry.suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        found = "no image" if not images else "several images: " + ", ".join(images)
        raise ShardError(
            "missing-image",
            f"sample {group[0].key!r} has {found}; exactly one of "
            f"{', '.join('.' + suffix for suffix in IMAGE_SUFFIXES)} is expected",
        )
    return group


def _read_sample(file: IO[bytes], group: list[Entry]) -> Sample:
    position = file.tell()
    contents: dict[str, bytes] = {}
    offset = 0
    for entry in group:
        file.seek(entry.offset)
        contents[entry.suffix] = file.read(entry.size)
        if entry.suffix in IMAGE_SUFFIXES:
            offset = entry.offset
    file.seek(position)
    suffix = next(suffix for suffix in contents if suffix in IMAGE_SUFFIXES)
    image = contents[suffix]
    return Sample(
        key=group[0].key,
        suffix=suffix,
        image=image,
        sha256=hashlib.sha256(image).hexdigest(),
        label=_label(group[0].key, contents.get(LABEL_SUFFIX)),
        caption=_caption(group[0].key, contents.get(CAPTION_SUFFIX)),
        offset=offset,
    )


def _label(key: str, data: bytes | None) -> int | None:
    if data is None:
        return None
    text = data.strip()
    if not text.isdigit() or int(text) not in LABEL_RANGE:
        raise ShardError(
            "label-invalid",
            f"sample {key!r}: .cls holds one whole number from 0 to {LABEL_RANGE.stop - 1}",
        )
    return int(text)


def _caption(key: str, data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ShardError("caption-invalid", f"sample {key!r}: .txt is not UTF-8") from error
    if "\0" in text:
        raise ShardError("caption-invalid", f"sample {key!r}: .txt holds a NUL character")
    return text
