"""Reads an npz file of a stranger: plain arrays that are as large as they say. Never unpickles, never decompresses."""

import io
import math
import struct
import tokenize
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_MEMBERS = 64
MAX_HEADER_CHARS = 500
"""Of an array's header; usual ones have 128."""
KINDS = "iufU"
"""Of numbers and text; NumPy's letters."""
SUFFIX = ".npy"
_DAMAGES = (
    ValueError, OSError, EOFError, KeyError, TypeError, OverflowError, SyntaxError,
    MemoryError, RuntimeError, struct.error, zipfile.BadZipFile,
    tokenize.TokenError,
)  # fmt: skip
"""What the zip reader and the reader of headers raise of damaged files."""


class BadArrays(ValueError):
    """The file is no npz file of plain arrays; the message says why."""


def read_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed npz file by name; together they are no larger than the file.

    Raises:
        BadArrays: it is no such file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _members(archive)
    except BadArrays:
        raise
    except _DAMAGES as error:
        raise BadArrays(f"this is no npz file of arrays ({error})") from error


def _members(archive: zipfile.ZipFile) -> dict[str, NDArray[Any]]:
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise BadArrays(f"{len(infos):,} members; at most {MAX_MEMBERS} are read")
    found: dict[str, NDArray[Any]] = {}
    for info in infos:
        name = info.filename.removesuffix(SUFFIX)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise BadArrays(f"{name!r} is compressed")
        if name in found:
            raise BadArrays(f"{name!r} is there twice")
        found[name] = _array(name, archive.read(info))
    return found


def _array(name: str, content: bytes) -> NDArray[Any]:
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise BadArrays(f"{name!r} is written in another version of the format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER_CHARS)
    if dtype.kind not in KINDS or dtype.names is not None:
        raise BadArrays(f"{name!r} holds {dtype}, neither numbers nor text")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise BadArrays(f"{name!r} is not as large as it says")
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
