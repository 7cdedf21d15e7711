"""The outside of a checkpoint file (safetensors): its header, checked, and the part that may leave the service.

Reads the layout that the safetensors format fixes: 8 bytes little-endian header length, JSON header, tensor bytes.
Knows no tensor library, so that the api can use it.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 20_000
MAX_MARKS = 20 * MAX_TENSORS
"""Commas and opening brackets of a header; a tensor has some ten. A few bytes of text each become objects of many."""
MAX_RANK = 16
"""Extents of a tensor; a convolution's weights have four."""
MAX_SIZE = 2**63 - 1
"""Of an extent, an offset, and the bytes of a tensor, as tensor libraries count. Integers of JSON have no end."""
NAME_CHARS = 80
"""Of a name, in a message."""
LENGTH_BYTES = 8
COPY_BYTES = 2**20
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
RELEASED_PREFIXES = ("encoder.", "projector.", "text_encoder.", "classifier.", "log_scale")
"""Tensors that may leave: no queue rows, no key or target encoder, nothing that still holds forgotten data."""


class TensorFileError(ValueError):
    """The file is not a well-formed safetensors file; the message says where it breaks the format."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Header of a safetensors file: metadata strings, tensor descriptions, where the data starts (bytes)."""

    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    data_start: int


def read_header(path: Path) -> TensorFile:
    """Read and check the header: sizes, dtypes, and that the tensors fill the file exactly, without gaps.

    Raises:
        TensorFileError: the first thing that is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        if len(prefix) < LENGTH_BYTES:
            raise TensorFileError("the file is too short to be safetensors")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            raise TensorFileError("the announced header is longer than the file or the limit")
        try:
            header = _parsed(file.read(length))
        except TensorFileError:
            raise
        except (ValueError, RecursionError) as error:
            raise TensorFileError("the header is not JSON") from error
    if not isinstance(header, dict):
        raise TensorFileError("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TensorFileError("__metadata__ is not a map of strings")
    if not 0 < len(header) <= MAX_TENSORS:
        raise TensorFileError(f"a checkpoint holds 1 to {MAX_TENSORS:,} tensors")
    _check_layout(header, size - LENGTH_BYTES - length)
    return TensorFile(metadata, header, LENGTH_BYTES + length)


def _parsed(text: bytes) -> Any:
    """The JSON that the library would read as well: UTF-8, no name twice, no half of a character."""
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_MARKS:
        raise TensorFileError(f"the header says more than {MAX_TENSORS:,} tensors need")
    header = json.loads(text.decode(), object_pairs_hook=_object)
    json.dumps(header, ensure_ascii=False).encode()
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _check_layout(tensors: dict[str, Any], data_bytes: int) -> None:
    spans = []
    for name, tensor in tensors.items():
        start, end = _span(f"tensor {name[:NAME_CHARS]!r}", tensor)
        spans.append((start, end))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise TensorFileError("the tensors overlap or leave a gap")
        position = end
    if position != data_bytes:
        raise TensorFileError(f"the tensors need {position} bytes, the file has {data_bytes}")


def _span(name: str, tensor: Any) -> tuple[int, int]:
    """Where the tensor starts and ends, if that fits its shape."""
    try:
        shape, (start, end) = tensor["shape"], tensor["data_offsets"]
        item = DTYPE_BYTES[tensor["dtype"]]
        rank = len(shape)
        numbers = [*shape[:MAX_RANK], start, end]
    except (KeyError, TypeError, ValueError) as error:
        raise TensorFileError(f"{name} is not described as it should be") from error
    if rank > MAX_RANK:
        raise TensorFileError(f"{name} has {rank} dimensions, {MAX_RANK} are the most")
    if not all(type(number) is int and 0 <= number <= MAX_SIZE for number in numbers):
        raise TensorFileError(f"{name} has a size that is not a whole number, or one of no file")
    needed = item
    for extent in shape:
        needed *= extent
        if needed > MAX_SIZE:
            raise TensorFileError(f"{name} has a shape that no file holds")
    if end - start != needed:
        raise TensorFileError(f"{name} has {end - start} bytes, its shape says {needed}")
    return start, end


def is_release(source: Path) -> bool:
    """Whether `write_release` would make just this file of it: then it need not.

    Raises:
        TensorFileError: as `write_release`.
    """
    head, _ = _release_head(read_header(source))
    with source.open("rb") as file:
        # The head says of every byte behind it whose it is.
        return file.read(len(head)) == head


def write_release(source: Path, target: Path) -> None:
    """Copy a checkpoint without the tensors that must stay inside; the bytes depend only on the source.

    Raises:
        TensorFileError: the source is malformed, or nothing of it may leave.
    """
    whole = read_header(source)
    head, names = _release_head(whole)
    with source.open("rb") as file, target.open("wb") as out:
        out.write(head)
        for name in names:
            start, end = whole.tensors[name]["data_offsets"]
            file.seek(whole.data_start + start)
            remaining = end - start
            while remaining:
                chunk = file.read(min(COPY_BYTES, remaining))
                out.write(chunk)
                remaining -= len(chunk)


def _release_head(whole: TensorFile) -> tuple[bytes, list[str]]:
    """What stands before the tensors of a release, and their names in order."""
    names = sorted(name for name in whole.tensors if name.startswith(RELEASED_PREFIXES))
    if not names:
        raise TensorFileError(f"no tensor named {' or '.join(p + '*' for p in RELEASED_PREFIXES)}")
    header: dict[str, Any] = {"__metadata__": dict(sorted(whole.metadata.items()))}
    position = 0
    for name in names:
        start, end = whole.tensors[name]["data_offsets"]
        offsets = [position, position + end - start]
        header[name] = {**whole.tensors[name], "data_offsets": offsets}
        position = offsets[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded, names
