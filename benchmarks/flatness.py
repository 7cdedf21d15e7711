"""Whether a process's memory stays where it is while it is called: a trend, not one number against another.

What a process learns once (modules, compiled statements, a heap that fits its work) rises and ends; a
leak rises as long as there are calls. So the first half of all passes is warming up, and a line through the second
one must be level. Measures nothing itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

BOUND = 0.01
"""Of the memory, in a thousand calls: of 200 MB, what is left behind by calls that forget 2 kB each."""
PER = 1000
"""Calls."""


@dataclass(frozen=True)
class Sample:
    """A look at a process."""

    number: int
    """Of the pass, from 0."""
    calls: int
    """So far."""
    resident: float
    """Megabytes (RSS)."""
    own: float
    """Megabytes that no other process shares (USS): what its end would free."""
    files: int
    threads: int


@dataclass(frozen=True)
class Trend:
    """Of the second half of the passes."""

    megabytes: float
    """Median of the process's own memory."""
    slope: float
    """Megabytes in PER calls, after Theil and Sen: the median of the slopes between any two samples."""

    @property
    def share(self) -> float:
        """The slope as a part of the memory."""
        return self.slope / self.megabytes

    @property
    def is_flat(self) -> bool:
        """Whether it is below BOUND; falling is no fault."""
        return self.share <= BOUND


def trend(samples: Sequence[Sample]) -> Trend:
    """The trend of the process's own memory over the second half of at least two passes."""
    passes = 1 + max(each.number for each in samples)
    late = [each for each in samples if each.number >= passes // 2]
    slopes = [
        PER * (two.own - one.own) / (two.calls - one.calls) for one, two in combinations(late, 2)
    ]
    return Trend(median(each.own for each in late), median(slopes))
