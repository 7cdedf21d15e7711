"""An audit to draw: simulated outputs, its report as clients get it, and the bundle of its pictures."""

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit import Outputs, Reference, audit
from expunge.evidence.pictures.bundle import Bundle

VIEWS, WIDTH = 3, 16
OTHERS = 96
SIDE = 12


def scene(
    m: int, *, keys: list[str] | None = None, others: int = OTHERS, thumbnails: bool = True
) -> tuple[dict[str, Any], Bundle]:
    """The report's JSON and the bundle of an audit of m forgotten images at two levels."""
    report, bundle = _audited(m, tuple(keys or ()), others, thumbnails)
    return deepcopy(report), bundle


@cache
def _audited(
    m: int, keys: tuple[str, ...], others: int, thumbnails: bool
) -> tuple[dict[str, Any], Bundle]:
    rng = np.random.default_rng(m)
    names = list(keys) or [f"sample-{i:05d}" for i in range(m)]
    own = {level: _outputs(m, 0.9, rng) for level in ("encoder", "projector")}
    kept, unseen = (
        Reference({level: _outputs(count, 0.3, rng) for level in own}) if count else None
        for count in (others, others)
    )
    report = audit(own, names, kept, unseen, matrix_size=m)  # type: ignore[arg-type]
    pixels = rng.integers(0, 256, (m, SIDE, SIDE, 3), dtype=np.uint8)
    bundle = Bundle(report.matrices, pixels if thumbnails else None, tuple(report.matrix_keys))
    return report.to_dict(), bundle


def _outputs(n: int, noise_after: float, rng: np.random.Generator) -> Outputs:
    """Views scatter around their sample: by 0.3 a dimension before, by `noise_after` after."""
    samples = rng.normal(size=(1, n, WIDTH))
    return Outputs.of(*(_views(samples, noise, rng) for noise in (0.3, noise_after)))


def _views(
    samples: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    views = samples + noise * rng.normal(size=(VIEWS, *samples.shape[1:]))
    unit: NDArray[np.float64] = views / np.linalg.norm(views, axis=2, keepdims=True)
    return unit.astype(np.float32)
