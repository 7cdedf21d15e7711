"""Alignment matrices as heat maps (PNG), tables (CSV) and arrays (NPY). Draws; never computes a statistic."""

import csv
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
DOTS_PER_INCH = 130
TITLES = {
    "before": "Alignment matrix before unlearning",
    "after": "Alignment matrix after unlearning",
    "gap": "Alignment gap (before − after)",
}


def render(
    which: str, level: str, matrices: dict[str, Matrix], keys: list[str]
) -> dict[str, bytes]:
    """One of an audit's matrices, (m, m) float32, in the three formats.

    `before` and `after` share one colour scale, so that the two pictures can be compared by eye;
    the gap has its own, centred on zero.
    """
    matrix = matrices[which]
    return {
        "png": heat_map(matrix, f"{TITLES[which]}\n{level} outputs", _scale(which, matrices)),
        "csv": table(matrix, keys),
        "npy": array(matrix),
    }


def _scale(which: str, matrices: dict[str, Matrix]) -> dict[str, Any]:
    if which == "gap":
        reach = max(float(np.abs(matrices["gap"]).max()), 1e-6)
        return {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    both = np.concatenate([matrices["before"], matrices["after"]])
    return {"cmap": "viridis", "vmin": float(both.min()), "vmax": float(both.max())}


def heat_map(matrix: Matrix, title: str, scale: dict[str, Any]) -> bytes:
    """A matrix as a PNG with title and colour bar."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, interpolation="nearest", **scale)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("sample, second view")
    axes.set_ylabel("sample, first view")
    figure.colorbar(image, ax=axes, label="cosine similarity")
    out = io.BytesIO()
    # Without a fixed entry Pillow's writer stamps the library version; equal matrices give equal bytes.
    figure.savefig(out, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return out.getvalue()


def table(matrix: Matrix, keys: list[str]) -> bytes:
    """A matrix as CSV whose first row and column name the samples."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", *keys])
    for key, row in zip(keys, matrix, strict=True):
        writer.writerow([key, *(f"{value:.6f}" for value in row)])
    return out.getvalue().encode()


def array(matrix: Matrix) -> bytes:
    """A matrix in NumPy's format, float32."""
    out = io.BytesIO()
    np.save(out, matrix.astype(np.float32), allow_pickle=False)
    return out.getvalue()
