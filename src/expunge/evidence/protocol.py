"""How the service audits a request whenever it does, fixed with the request: anybody can compute it again."""

import hashlib
from typing import Any

VIEWS = 10
MAX_SAMPLES = 512
"""Of a request with more, so many are drawn."""
MATRIX_SIZE = 64
SEED_BYTES = 6
"""So that every reader of JSON holds a seed exactly."""


def protocol(model_id: str, request_id: str) -> dict[str, Any]:
    """Views, samples, and seeds that nobody chooses."""
    return {
        "views": VIEWS,
        "seed": views_seed(model_id),
        "draw": {"samples": MAX_SAMPLES, "seed": _seed(request_id)},
        "matrix_size": MATRIX_SIZE,
    }


def views_seed(model_id: str) -> int:
    """The first 48 bits of the SHA-256 of the model's id.

    All requests of a model share it, so that what they are held against is computed once.
    """
    return _seed(model_id)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:SEED_BYTES], "big")
