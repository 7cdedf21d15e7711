"""Counter-based random numbers: a number is a pure function of seed, sample and draw.

So the view of an image does not depend on the batch it is in, nor on the device.
Holds no state and never touches torch's global generators.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_INCREMENT = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_FLOAT_BITS = 24
"""A float32 holds 24 bits exactly."""


def mix(*words: int) -> int:
    """Hash integers to one in [0, 2**64): splitmix64 (Steele et al. 2014) over each word."""
    state = 0
    for word in words:
        state = (state + word + _INCREMENT) & _MASK
        state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
        state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
        state ^= state >> 31
    return state


def uniforms(seed: int, ids: Tensor, draws: int) -> Tensor:
    """(B, draws) float32 in [0, 1) from (B,) int64 `ids`: row i depends on (seed, ids[i]) only."""
    row = _mix_tensor(ids + _signed(seed))
    counters = [_signed((i * _INCREMENT) & _MASK) for i in range(1, draws + 1)]
    grid = row.unsqueeze(1) + torch.tensor(counters, device=ids.device)
    bits = _shift(_mix_tensor(grid), 64 - _FLOAT_BITS)
    return bits.to(torch.float32) * 2.0**-_FLOAT_BITS


def _mix_tensor(words: Tensor) -> Tensor:
    words = (words ^ _shift(words, 30)) * _signed(_MIX_1)
    words = (words ^ _shift(words, 27)) * _signed(_MIX_2)
    return words ^ _shift(words, 31)


def _shift(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word
