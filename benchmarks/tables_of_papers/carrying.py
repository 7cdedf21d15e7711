"""Finished stages in files small enough to carry between machines, and back.

Weights travel as bfloat16, so what is unpacked is rounded, and settings that are run on it there
start from rounded weights; results travel as they are. Snapshots of unfinished stages stay behind.
"""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MAX_PART_BYTES = 15_500_000
"""Of the tensors in one file; a single larger tensor, such as CLIP's token embedding, has its own."""
SEPARATOR = "__"
WEIGHTS, RESULTS = ".safetensors", ".json"


def pack(work: Path, target: Path) -> None:
    """Write every checkpoint below `work` in parts, and copy every result."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in work.rglob("*") if p.suffix in (WEIGHTS, RESULTS)):
        name = SEPARATOR.join(path.relative_to(work).parts)
        if path.suffix == RESULTS:
            shutil.copyfile(path, target / name)
            continue
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for index, part in enumerate(_parts(tensors)):
            save_file(part, target / f"{name}.part{index}", metadata)


def unpack(source: Path, work: Path) -> None:
    """Put everything packed back below `work`, weights as float32; nothing there is replaced."""
    for path in sorted(source.iterdir()):
        name, _, part = path.name.partition(f"{WEIGHTS}.part")
        place = work.joinpath(*(name + (WEIGHTS if part else "")).split(SEPARATOR))
        if place.exists() or (part and part != "0"):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if not part:
            shutil.copyfile(path, place)
            continue
        tensors: dict[str, Tensor] = {}
        for piece in sorted(source.glob(f"{name}{WEIGHTS}.part*")):
            with safe_open(piece, framework="pt") as file:
                metadata = file.metadata()
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file({key: _widened(value) for key, value in tensors.items()}, place, metadata)


def _parts(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in sorted(tensors.items()):
        small = tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
        if size + small.nbytes > MAX_PART_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = small.contiguous()
        size += small.nbytes
    return parts


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
