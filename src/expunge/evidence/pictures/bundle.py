"""What the pictures of one audit are drawn from, as one file: matrices, thumbnails, keys.

Packing never compresses and never pickles: equal bundles give equal bytes, and reading runs no code.
"""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Which = Literal["before", "after", "gap"]
Matrix = NDArray[np.float32]
Pixels = NDArray[np.uint8]

WHICH: tuple[Which, ...] = get_args(Which)
THUMBNAIL_SIDE = 64
"""Pixels; larger images are shrunk to it, smaller ones kept as they are."""
MAX_SAMPLES = 4096
"""Of one bundle: its matrices then stay within 64 MiB each."""
THUMBNAIL_DIMS, RGB = 4, 3

KEYS_MEMBER = "keys.json"
THUMBNAILS_MEMBER = "thumbnails.npy"
NPY_VERSION = (1, 0)


class BundleError(ValueError):
    """The matrices, thumbnails and keys do not make a bundle; the message says what is wrong."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """The matrices of one audit over m chosen samples, and what names them.

    matrices: level -> before, after, gap -> (m, m) float32, finite; row i, column j belong to
    keys i and j (at level "image_text": image i, caption j).
    thumbnails: (m, S, S, 3) uint8 RGB of the samples, or None; keys: m names, in matrix order.

    Raises BundleError for anything else.
    """

    matrices: Mapping[str, Mapping[str, Matrix]]
    thumbnails: Pixels | None
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.keys) <= MAX_SAMPLES:
            raise BundleError(f"a bundle holds 1 to {MAX_SAMPLES:,} samples, not {len(self.keys)}")
        if not all(_is_text(key) for key in self.keys):
            raise BundleError("a key holds half a character (a lone surrogate)")
        if not self.matrices:
            raise BundleError("a bundle holds the matrices of at least one level")
        for level, matrices in self.matrices.items():
            if not level.isidentifier():
                raise BundleError(f"{level!r} is not a level's name")
            if set(matrices) != set(WHICH):
                raise BundleError(f"{level}: {', '.join(WHICH)} are needed, and nothing else")
            for which, matrix in matrices.items():
                self._check(f"{level}, {which}", matrix)
        if self.thumbnails is not None:
            self._check_thumbnails(self.thumbnails)

    def _check(self, name: str, matrix: Matrix) -> None:
        m = len(self.keys)
        if matrix.dtype != np.float32 or matrix.shape != (m, m):
            raise BundleError(f"{name}: ({m}, {m}) float32 is needed, not {_kind(matrix)}")
        if not np.isfinite(matrix).all():
            raise BundleError(f"{name}: holds a value that is not a finite number")

    def _check_thumbnails(self, pixels: Pixels) -> None:
        square = pixels.ndim == THUMBNAIL_DIMS and pixels.shape[1] == pixels.shape[2] > 0
        shaped = square and pixels.shape[0] == len(self.keys) and pixels.shape[3] == RGB
        if pixels.dtype != np.uint8 or not shaped:
            raise BundleError(
                f"thumbnails: ({len(self.keys)}, S, S, 3) uint8 is needed, not {_kind(pixels)}"
            )

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, in the order of the matrices."""
        return tuple(self.matrices)


def thumbnails(images: Sequence[Pixels] | Pixels, side: int = THUMBNAIL_SIDE) -> Pixels:
    """Square thumbnails of at most `side` pixels.

    Args:
        images: m square RGB images of one size, each (S, S, 3) uint8.

    Returns:
        (m, min(S, side), min(S, side), 3) uint8; a copy.
    """
    stack = np.array(images, dtype=np.uint8)
    if stack.shape[1] <= side:
        return stack
    shrunk = [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
        for image in stack
    ]
    return np.stack(shrunk)


def pack(bundle: Bundle) -> bytes:
    """The bundle as an .npz file; `numpy.load` reads it too. Equal bundles give equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name), data)  # its date is fixed, 1980

        add(KEYS_MEMBER, json.dumps(list(bundle.keys)).encode())
        for level in bundle.levels:
            for which in WHICH:
                add(_member(level, which), npy(bundle.matrices[level][which]))
        if bundle.thumbnails is not None:
            add(THUMBNAILS_MEMBER, npy(bundle.thumbnails))
    return out.getvalue()


def unpack(data: bytes) -> Bundle:
    """Read what `pack` wrote.

    Raises:
        BundleError: the bytes are not a bundle; the message says where.
    """
    members = _members(data)
    try:
        keys = json.loads(members.pop(KEYS_MEMBER, b"null"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{KEYS_MEMBER} is not JSON") from error
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BundleError(f"{KEYS_MEMBER} is not there or not a list of strings")
    pixels = members.pop(THUMBNAILS_MEMBER, None)
    matrices: dict[str, dict[str, Matrix]] = {}
    for name, content in members.items():
        level, separator, which = name.removesuffix(".npy").rpartition(".")
        if not separator:
            raise BundleError(f"{name!r} does not belong into a bundle")
        matrices.setdefault(level, {})[which] = _array(name, content)
    picture = None if pixels is None else _array(THUMBNAILS_MEMBER, pixels)
    return Bundle(matrices, picture, tuple(keys))


def npy(array: NDArray[Any]) -> bytes:
    """An array in NumPy's format, C order."""
    out = io.BytesIO()
    np.lib.format.write_array(
        out, np.ascontiguousarray(array), version=NPY_VERSION, allow_pickle=False
    )
    return out.getvalue()


def _member(level: str, which: Which) -> str:
    return f"{level}.{which}.npy"


def _members(data: bytes) -> dict[str, bytes]:
    """Contents by name; only stored members are read, so that no small file becomes a large one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(data))
            return {entry.filename: archive.read(entry) for entry in entries}
    except BundleError:
        raise
    # The reader's errors for damaged or odd files: structure, checksums, encryption, positions.
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error) as error:
        raise BundleError(f"the file is damaged or no .npz: {error}") from error


def _check_entries(entries: list[zipfile.ZipInfo], file_bytes: int) -> None:
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BundleError("a member is compressed, which a bundle's members never are")
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise BundleError("the members are larger than the file")
    if len({entry.filename for entry in entries}) < len(entries):
        raise BundleError("two members have the same name")


def _array(name: str, content: bytes) -> Any:
    """The array of an .npy member, whose header must fit the bytes that are there."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        values = np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
    # ValueError is also what NumPy says of pickled objects; the others come from odd headers.
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise BundleError(f"{name}: is not an array of numbers: {error}") from error
    if version != NPY_VERSION or fortran_order:
        raise BundleError(f"{name}: an .npy file of version 1.0 in C order is needed")
    return values


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(array: NDArray[Any]) -> str:
    return f"{array.shape} {array.dtype}"
