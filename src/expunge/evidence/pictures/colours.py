"""The two colour scales of all pictures, in figures and terminals alike. Knows no drawing library.

Both run between blue and yellow or orange, which every common kind of colour blindness tells apart,
and change evenly in lightness, so that they also work in grey.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

STEPS = 257
"""Odd, so that zero has the middle colour exactly."""
SEQUENTIAL = ("#10174a", "#22508a", "#4a8a9b", "#a3bf8f", "#fdf3b4")
"""Low to high, lightness rising: for values without a natural middle."""
DIVERGING = ("#154690", "#5d97cf", "#f7f7f5", "#e39440", "#7d3503")
"""Below, at and above zero."""
INK_ON_LIGHT, INK_ON_DARK = "#1a1a1a", "#ffffff"
EVEN_LIGHTNESS = 0.62
"""OKLab lightness above which dark text reads better than light text."""

# OKLab: https://bottosson.github.io/posts/oklab/ (linear sRGB -> cone responses -> L, a, b).
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

# sRGB's transfer curve (IEC 61966-2-1): linear near black, a power above.
_LINEAR_BELOW, _ENCODED_BELOW, _SLOPE, _OFFSET, _POWER = 0.0031308, 0.04045, 12.92, 0.055, 2.4

Colours = NDArray[np.float64]


@cache
def scale(anchors: tuple[str, ...]) -> Colours:
    """(257, 3) sRGB in [0, 1] through `anchors`, interpolated in OKLab; read-only."""
    known = np.array([oklab(_from_hex(anchor)) for anchor in anchors])
    at = np.linspace(0, len(anchors) - 1, STEPS)
    lab = np.stack([np.interp(at, range(len(anchors)), known[:, i]) for i in range(3)], axis=1)
    linear = np.linalg.solve(_CONES, np.linalg.solve(_LAB, lab.T) ** 3).T
    table: Colours = _encoded(np.clip(linear, 0, 1))
    table.flags.writeable = False
    return table


def colours_of(share: NDArray[np.floating], anchors: tuple[str, ...]) -> NDArray[np.uint8]:
    """(..., 3) uint8 sRGB for shares (...) in [0, 1] of a scale; beyond is clipped."""
    steps = np.rint(np.clip(share, 0, 1) * (STEPS - 1)).astype(int)
    colours: NDArray[np.uint8] = np.rint(scale(anchors)[steps] * 255).astype(np.uint8)
    return colours


def ink_on(colour: Colours) -> str:
    """The text colour (#rrggbb) that reads well on sRGB `colour`, (3,) in [0, 1]."""
    return INK_ON_LIGHT if oklab(colour)[0] > EVEN_LIGHTNESS else INK_ON_DARK


def oklab(colour: Colours) -> Colours:
    """(..., 3) sRGB in [0, 1] -> (..., 3) lightness, green-red, blue-yellow."""
    lab: Colours = np.cbrt(_linear(colour) @ _CONES.T) @ _LAB.T
    return lab


def _from_hex(colour: str) -> Colours:
    return np.array(list(bytes.fromhex(colour.removeprefix("#")))) / 255


def _linear(colour: Colours) -> Colours:
    curve = ((colour + _OFFSET) / (1 + _OFFSET)) ** _POWER
    return np.where(colour <= _ENCODED_BELOW, colour / _SLOPE, curve)


def _encoded(linear: Colours) -> Colours:
    curve = (1 + _OFFSET) * linear ** (1 / _POWER) - _OFFSET
    return np.where(linear <= _LINEAR_BELOW, linear * _SLOPE, curve)
