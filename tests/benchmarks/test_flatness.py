"""The trend of a process's memory: leaks are found under noise, warming up is none."""

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PASSES, SAMPLES, STEP = 10, 20, 50
"""Samples of a pass, and calls between two of them."""


@pytest.fixture
def flatness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("flatness")


def _trend(flatness: ModuleType, megabytes: Callable[[int], float]) -> object:
    rng = random.Random(1)  # noqa: S311 - to be repeated
    samples = []
    for place in range(PASSES * SAMPLES):
        calls = place * STEP
        # Now and then a body of many megabytes is in the works.
        noise = rng.gauss(0, 1) + (30 if rng.random() < 0.05 else 0)
        own = megabytes(calls) + noise
        samples.append(flatness.Sample(place // SAMPLES, calls, own + 40, own, 20, 5))
    return flatness.trend(samples)


def test_a_leak_of_four_kilobytes_a_call_is_found_under_noise(flatness: ModuleType) -> None:
    found = _trend(flatness, lambda calls: 200 + 4e-3 * calls)
    assert not found.is_flat
    assert found.slope == pytest.approx(4, rel=0.1)


def test_memory_that_rises_while_the_process_warms_up_is_flat(flatness: ModuleType) -> None:
    found = _trend(flatness, lambda calls: 160 + min(calls / 50, 60))
    assert found.is_flat
    assert abs(found.slope) < 0.3


def test_memory_that_falls_is_flat(flatness: ModuleType) -> None:
    assert _trend(flatness, lambda calls: 300 - 4e-3 * calls).is_flat
