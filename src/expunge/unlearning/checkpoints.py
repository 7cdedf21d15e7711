"""Checkpoints as safetensors with their specification in the header.

Never unpickles, and never loads a file whose tensors do not fit its specification.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from expunge.formats.tensors import (
    RELEASED_PREFIXES,
    TensorFile,
    TensorFileError,
    read_header,
)
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.frameworks import Learner, build

FORMAT = "expunge-checkpoint/1"
HEADER_ALIGNMENT = 8
"""Bytes; safetensors pads its JSON header with spaces to this."""
MAX_NAMED = 8
"""Tensors a message names per kind of mismatch before it only counts."""

CHECKED_BYTES = 4 * 2**20
"""Of a tensor, looked at at once; a multiple of a number's size."""

_DTYPES = {torch.float32: "F32", torch.int64: "I64"}


class CheckpointMismatch(ValueError):
    """The file is no checkpoint, or its tensors do not fit its specification."""


def save(learner: Learner, path: Path, *, extra: Mapping[str, str] | None = None) -> None:
    """Write all tensors of `learner`; equal learners give equal bytes.

    `extra` adds string metadata. Tensors are named encoder.* and, where the framework has them,
    projector.*; for MoCo also key_encoder.*, key_projector.*, queue, queue_ids, queue_pointer; for
    BYOL predictor.*, target_encoder.*, target_projector.*; for CLIP text_encoder.*, log_scale; for
    supervised encoders classifier.*.
    """
    metadata = dict(extra or {}) | {"format": FORMAT, "spec": learner.spec.model_dump_json()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in learner.state_dict().items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    # Written here because the library's writer orders metadata by a random hash.
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for _, tensor in sorted(tensors.items()):
            file.write(np.ascontiguousarray(tensor.numpy()).tobytes())


def read_spec(path: Path) -> EncoderSpec:
    """The specification in a checkpoint's header, tensors unread.

    Raises CheckpointMismatch if the file is no checkpoint of this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointMismatch(f"not a safetensors file: {error}") from error
    found = metadata.get("format")
    if found != FORMAT:
        raise CheckpointMismatch(f"header names format {found!r}, expected {FORMAT!r}")
    try:
        return EncoderSpec.model_validate_json(metadata.get("spec", ""))
    except ValidationError as error:
        raise CheckpointMismatch(f"header holds no valid encoder specification: {error}") from error


def load(path: Path, device: torch.device | str = "cpu", *, released: bool = False) -> Learner:
    """The learner of a checkpoint, in eval mode, on `device`.

    released: the file is the part that may leave; whatever else the learner has stays as it was
    built, so it answers as the whole does and must not be trained.

    Raises CheckpointMismatch naming the tensors that are missing, unexpected, misshapen, of
    another type or not finite.
    """
    learner = build(read_spec(path), seed=0)
    expected = learner.state_dict()
    if released:
        leaving = {name for name in expected if name.startswith(RELEASED_PREFIXES)}
        expected = {name: expected[name] for name in leaving}
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        found = {
            name: (tuple(part.get_shape()), part.get_dtype())
            for name in names
            for part in [file.get_slice(name)]
        }
        _refuse_misfits(expected, found)
        tensors = {name: file.get_tensor(name) for name in sorted(names)}
    _refuse_values(tensors)
    learner.load_state_dict(tensors, strict=not released)
    return learner.to(device).eval()


def check(path: Path) -> None:
    """See that `load` would take the file, in bounded memory: tensors are looked at a bit at a time.

    Raises CheckpointMismatch as `load` does.
    """
    spec = read_spec(path)
    with torch.device("meta"):
        expected = build(spec, seed=0).state_dict()
    try:
        header = read_header(path)
    except TensorFileError as error:
        raise CheckpointMismatch(f"not a safetensors file: {error}") from error
    _refuse_misfits(
        expected,
        {
            name: (tuple(described["shape"]), described["dtype"])
            for name, described in header.tensors.items()
        },
    )
    with path.open("rb") as file:
        broken = [
            name
            for name in sorted(header.tensors)
            if expected[name].is_floating_point() and not _is_finite(file, header, name)
        ]
        _refuse_broken(broken)
        if "queue_pointer" in header.tensors:
            start, end = header.tensors["queue_pointer"]["data_offsets"]
            file.seek(header.data_start + start)
            _refuse_pointer(struct.unpack("<q", file.read(end - start))[0], len(expected["queue"]))


def _is_finite(file: IO[bytes], header: TensorFile, name: str) -> bool:
    """Whether a float32 tensor of the file holds neither infinity nor NaN."""
    start, end = header.tensors[name]["data_offsets"]
    file.seek(header.data_start + start)
    for first in range(start, end, CHECKED_BYTES):
        values = np.frombuffer(file.read(min(CHECKED_BYTES, end - first)), dtype="<f4")
        if not np.isfinite(values).all():
            return False
    return True


def _refuse_misfits(
    expected: Mapping[str, Tensor], found: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    wrong = []
    for name in sorted(expected.keys() & found.keys()):
        want = (tuple(expected[name].shape), _DTYPES[expected[name].dtype])
        if found[name] != want:
            wrong.append(f"{name} is {_described(found[name])}, expected {_described(want)}")
    problems = [
        _listed("missing", sorted(expected.keys() - found.keys())),
        _listed("unexpected", sorted(found.keys() - expected.keys())),
        _listed("misshapen", wrong),
    ]
    if any(problems):
        raise CheckpointMismatch(
            "the tensors do not fit the header's specification: "
            + "; ".join(filter(None, problems))
        )


def _refuse_values(tensors: Mapping[str, Tensor]) -> None:
    _refuse_broken(
        [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    )
    if "queue_pointer" in tensors:
        _refuse_pointer(int(tensors["queue_pointer"]), len(tensors["queue"]))


def _refuse_broken(names: list[str]) -> None:
    if names:
        raise CheckpointMismatch(_listed("not finite", names))


def _refuse_pointer(pointer: int, size: int) -> None:
    if not 0 <= pointer < size:
        raise CheckpointMismatch(f"queue_pointer is {pointer}, expected 0 to {size - 1}")


def _described(tensor: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = tensor
    return f"{dtype} {list(shape)}"


def _listed(kind: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return f"{kind}: {', '.join(items[:MAX_NAMED])}{more}"
