"""Which samples an audit looks at: draws that anybody can repeat, and what names them afterwards. Reads no image."""

import heapq
from collections.abc import Iterable
from hashlib import sha256
from operator import itemgetter
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
    # Places are all different: samples are never compared.
    ranked = (
        (sha256(f"{seed}:{sample.sha256}:{sample.key}".encode()).digest(), place, sample)
        for place, sample in enumerate(samples)
    )
    chosen = heapq.nsmallest(count, ranked)
    return [sample for _, _, sample in sorted(chosen, key=itemgetter(1))]


def subset_digest(image_digests: Iterable[str]) -> str:
    """`sha256:<hex>` over the sorted hexadecimal image digests, each with a line feed."""
    lines = "".join(f"{digest}\n" for digest in sorted(image_digests))
    return f"sha256:{sha256(lines.encode()).hexdigest()}"
