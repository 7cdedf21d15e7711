"""A matrix for analysts: as CSV that no spreadsheet runs as a formula, and in NumPy's format."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from expunge.evidence.pictures.bundle import Matrix, npy

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What makes a spreadsheet read a cell as a formula, wide forms included."""
GUARD = "'"


def matrix_csv(matrix: Matrix, keys: Sequence[str]) -> bytes:
    """(m, m) float32 as UTF-8 CSV (RFC 4180) whose first row and first column name the samples; see `guarded`.

    Nine significant digits: reading them as float32 gives the same matrix.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    names = [guarded(key) for key in keys]
    writer.writerow(["key", *names])
    for name, row in zip(names, matrix, strict=True):
        writer.writerow([name, *(f"{value:.9g}" for value in row)])
    return out.getvalue().encode()


def matrix_npy(matrix: Matrix) -> bytes:
    """(m, m) in NumPy's format, float32."""
    return npy(matrix.astype(np.float32))


def guarded(key: str) -> str:
    """The key with `'` in front if a spreadsheet might run it, or if it begins with `'` itself.

    So one leading `'`, where there is one, is always to be dropped to get the key back.
    """
    risky = key.lstrip(" ").startswith((*FORMULA_STARTS, GUARD))
    return GUARD + key if risky else key
