"""Which samples an audit looks at: draws that anybody can repeat, and what names them afterwards. Reads no image."""

import hashlib
import heapq
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Drawable(Protocol):
    """A sample as the index of a sealed data set knows it."""

    @property
    def key(self) -> str:
        """Name in its data set."""
        ...

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of its encoded image."""
        ...


Sample = TypeVar("Sample", bound=Drawable)


def draw(samples: Iterable[Sample], count: int, seed: str) -> list[Sample]:
    """At most `count` of the samples, at random by `seed`, in the order given.

    Those whose SHA-256 of `<seed>:<image digest>:<key>` is smallest: the choice depends on nothing
    but seed and samples, and keeps `count` of them in memory, however many pass.
    """
    ranked = ((_rank(sample, seed), place, sample) for place, sample in enumerate(samples))
    chosen = heapq.nsmallest(count, ranked, key=lambda each: each[:2])
    return [sample for _, _, sample in sorted(chosen, key=lambda each: each[1])]


def _rank(sample: Drawable, seed: str) -> bytes:
    return hashlib.sha256(f"{seed}:{sample.sha256}:{sample.key}".encode()).digest()


def subset_digest(image_digests: Iterable[str]) -> str:
    """`sha256:<hex>` over the sorted hexadecimal image digests, each with a line feed."""
    lines = "".join(f"{digest}\n" for digest in sorted(image_digests))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
