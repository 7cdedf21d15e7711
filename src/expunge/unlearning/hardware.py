"""Which device and number format a run uses. Never changes global settings for good."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch

CPU_FLAGS = Path("/proc/cpuinfo")
CPU_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Without one of these, bf16 on a CPU is emulated and slower than float32."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def precision_for(device: torch.device) -> str:
    """`bfloat16` where the hardware multiplies it natively, else `float32`."""
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass; nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and this device seeded and cuDNN deterministic inside, all as before outside."""
    devices = [device] if device.type == "cuda" else []
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: in a process that never uses CUDA it notes each call for later.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before


@cache
def _cpu_has_bf16() -> bool:
    try:
        flags = CPU_FLAGS.read_text(encoding="ascii", errors="ignore").split()
    except OSError:
        return False
    return any(flag in flags for flag in CPU_BF16_FLAGS)
