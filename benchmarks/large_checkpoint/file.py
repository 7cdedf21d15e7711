"""A valid checkpoint of any size that takes nearly no room on a disk."""

import json
import struct
from pathlib import Path
from typing import Any

import torch

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.checkpoints import FORMAT
from expunge.unlearning.frameworks import build

MIB = 2**20


def spec_of(model: str) -> EncoderSpec:
    """CLIP by an open_clip configuration."""
    return EncoderSpec.model_validate(
        {
            "objective": {"framework": "clip"},
            "architecture": {"name": "open_clip", "model": model},
            "image_size": 224,
        }
    )


def write(path: Path, model: str) -> Path:
    """A valid checkpoint, nearly all of it a hole; every mebibyte is another, as in real ones."""
    spec = spec_of(model)
    with torch.device("meta"):
        tensors = sorted(build(spec, seed=0).state_dict().items())
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "spec": spec.model_dump_json()},
    }
    position = 0
    for name, tensor in tensors:
        kind = "F32" if tensor.dtype == torch.float32 else "I64"
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + position)
        for number, at in enumerate(range(0, position - 8, MIB)):
            file.seek(start + at)
            file.write(struct.pack("<ff", number, number))
    return path
