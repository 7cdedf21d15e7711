"""The colour scales: what people with and without colour blindness can tell apart, and what they stand for."""

import numpy as np
import pytest
from numpy.typing import NDArray

from expunge.evidence.pictures.colours import (
    DIVERGING,
    INK_ON_DARK,
    INK_ON_LIGHT,
    SEQUENTIAL,
    colours_of,
    ink_on,
    oklab,
    scale,
)
from expunge.evidence.pictures.scales import Scale, alignment_scale, gap_scale

Array = NDArray[np.float64]

# Complete deuteranopia, tritanopia and protanopia on linear sRGB (Machado et al. 2009, table 1).
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TELLING = 0.02
"""OKLab distance that one sees side by side."""


def seen(colours: Array, deficiency: str) -> Array:
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    shifted = np.clip(linear @ np.array(DEFICIENCIES[deficiency]).T, 0, 1)
    return np.where(shifted <= 0.0031308, shifted * 12.92, 1.055 * shifted ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_sequential_scale_brightens_evenly_for_everybody(deficiency: str) -> None:
    lightness = oklab(seen(scale(SEQUENTIAL), deficiency))[:, 0]
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert lightness[-1] - lightness[0] > 0.65
    assert steps[8:-8].max() < 2.5 * np.median(steps)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_less_and_more_differ_in_colour_and_from_zero_for_everybody(deficiency: str) -> None:
    lab = oklab(seen(scale(DIVERGING), deficiency))
    below, zero, above = lab[:128][::-1], lab[128], lab[129:]
    assert (np.diff(below[:, 0]) < 0).all()
    assert (np.diff(above[:, 0]) < 0).all()
    quarter = slice(32, None)
    for side in (below, above):
        assert (np.linalg.norm(side[quarter] - zero, axis=1) > 2 * TELLING).all()
    assert (np.linalg.norm(below[quarter] - above[quarter], axis=1) > 2 * TELLING).all()


def test_oklab_of_known_colours() -> None:
    white, red = oklab(np.array([1.0, 1.0, 1.0])), oklab(np.array([1.0, 0.0, 0.0]))
    assert white == pytest.approx([1, 0, 0], abs=1e-4)
    assert red == pytest.approx([0.62796, 0.22486, 0.12585], abs=1e-4)


@pytest.mark.parametrize("anchors", [SEQUENTIAL, DIVERGING])
def test_scales_pass_through_their_anchors_and_clip_beyond(anchors: tuple[str, ...]) -> None:
    at = colours_of(np.array([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 7.0]), anchors)
    expected = [anchors[i] for i in (0, 0, 1, 2, 3, 4, 4)]
    assert ["#" + bytes(colour).hex() for colour in at] == expected


def test_ink_is_dark_on_light_and_light_on_dark() -> None:
    table = scale(SEQUENTIAL)
    assert ink_on(table[0]) == INK_ON_DARK
    assert ink_on(table[-1]) == INK_ON_LIGHT


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(-0.13, 0.72, (-0.15, 0.75)), (0.5, 1.0000001, (0.5, 1.0)), (0.9, 0.9, (0.9, 0.95))],
)
def test_before_and_after_share_one_scale_with_round_ends(
    low: float, high: float, ends: tuple[float, float]
) -> None:
    before, after = np.full((2, 2), low, np.float32), np.full((2, 2), high, np.float32)
    for shared in (alignment_scale(before, after), alignment_scale(after, before)):
        assert (shared.low, shared.high) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("largest", "reach"), [(0.1234, 0.13), (-0.02, 0.02), (1.31, 1.4), (1e-7, 0.01), (0.0, 0.01)]
)
def test_the_gaps_scale_is_centred_and_does_not_blow_up_noise(largest: float, reach: float) -> None:
    shown = gap_scale(np.array([[largest, 0.0]], np.float32))
    assert (shown.low, shown.high) == pytest.approx((-reach, reach))


def test_zero_has_the_middle_colour() -> None:
    colours = Scale(-0.3, 0.3, DIVERGING).colours(np.zeros((1, 1), np.float32))
    assert bytes(colours[0, 0]).hex() == DIVERGING[2][1:]
