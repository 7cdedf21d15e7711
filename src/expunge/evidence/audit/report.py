"""What an audit says, as frozen records that turn into JSON. Computes nothing."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.outputs import Level

VerdictCode = Literal[
    "unchanged", "forgotten", "not_for_you", "not_enough_evidence", "no_reference"
]
LookName = Literal["forgetting_score", "profile_change", "neighbourhood_alignment"]
PlacedName = Literal["forgetting_score", "negative_alignment_change"]
Draws = Literal["plain", "matched"]
Matrix = NDArray[np.float32]
Interval = list[float] | None


@dataclass(frozen=True)
class Statistic:
    """A mean over n samples (or their pairs), its spread, and a bootstrap interval of the mean."""

    mean: float
    std: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class NegativeAlignment:
    """Mean alignment between different samples; None below two samples."""

    before: Statistic
    after: Statistic
    change: Statistic
    """After minus before, entry by entry."""


@dataclass(frozen=True)
class Group:
    """One level's statistics of the own samples, of the retained ones, or of the control."""

    forgetting_score: Statistic
    negative_alignment: NegativeAlignment | None


@dataclass(frozen=True)
class Difference:
    """Own minus control, with its interval."""

    difference: float
    interval: list[float]


@dataclass(frozen=True)
class Contrast:
    """How the own samples' change differs from the control's."""

    forgetting_score: Difference
    negative_alignment_change: Difference | None


@dataclass(frozen=True)
class LevelReport:
    """Everything measured on one kind of output."""

    own: Group
    per_sample: dict[str, float]
    """Forgetting score by the owner's own keys."""
    retained: Group | None
    control: Group | None
    contrast: Contrast | None


@dataclass(frozen=True)
class LookResult:
    """One statistic of the test: the own samples' value beside that of the draws."""

    level: Level
    statistic: LookName
    value: float
    z: float
    """Distance above the mean of the draws in their standard deviations, to two decimals. Mean and
    standard deviation themselves, or all digits, would be numbers of few samples of others."""
    p: float
    """Of this look alone, one-sided; not adjusted for there being others. The test's own p is."""


@dataclass(frozen=True)
class Test:
    """Permutation test of `hypothesis`: the own samples among draws from own and retained ones."""

    hypothesis: str
    alpha: float
    p: float
    p_used: float
    """Of the looks at outputs that are used, without the projector's: there a removal has to show too."""
    alpha_used: float
    n: int
    """Own samples that take part: at most a quarter as many as retained ones, of whose kind enough are retained."""
    n_reference: int
    n_alike: int
    """Of the reference, how many take part in the draws: those of the own samples' kinds, rounded
    down to a multiple of 8, so that one more or less does not show."""
    draws: int
    reference: Draws
    """`matched`: among retained samples of the own samples' kind; `plain`: among all."""
    looks: list[LookResult]


@dataclass(frozen=True)
class Power:
    """How often this audit would find an exact retrain without the own samples."""

    effect: dict[Level, float]
    """Forgetting score that an exact retrain would add: after the removal, self-alignment of
    retained minus control."""
    power: float
    target: float
    samples_needed: int | None
    """Own samples for the target power; None where the effect is too small to say."""


@dataclass(frozen=True)
class Membership:
    """Are own samples still better aligned than the control, under the encoder after?"""

    p: float
    """Permutation test, one-sided, over all levels; small: they still look trained on."""
    difference: dict[Level, float]
    """Self-alignment after, own minus control."""


@dataclass(frozen=True)
class NullQuantiles:
    """Where draws of n retained samples lie, so that own numbers can be placed at home."""

    n: int
    percentiles: list[float]
    levels: dict[Level, dict[PlacedName, list[float]]]


@dataclass(frozen=True)
class Verdict:
    """The one sentence an owner reads."""

    code: VerdictCode
    sentence: str


@dataclass(frozen=True)
class AuditReport:
    """Result of `audit`; arrays are kept out of `to_dict`."""

    levels: dict[Level, LevelReport]
    n_own: int
    n_retained: int
    n_control: int
    views: int
    seed: int
    confidence: float
    verdict: Verdict
    test: Test | None
    """None below 64 retained samples, or where no own sample has 8 of its kind among them."""
    power: Power | None
    """None without a test or without a control."""
    membership: Membership | None
    null_quantiles: NullQuantiles | None
    matrices: dict[Level, dict[str, Matrix]] = field(repr=False)
    """Per level `before`, `after` and `gap` = before - after, (m, m) float32."""
    matrix_keys: list[str]
    """Keys of the matrices' m rows."""

    def to_dict(self) -> dict[str, Any]:
        """The report without matrices, ready for JSON."""
        plain = {
            name: value
            for name, value in vars(self).items()
            if name not in {"levels", "matrices", "verdict", *_PARTS}
        }
        parts = {name: _dict(getattr(self, name)) for name in _PARTS}
        levels = {name: _level_dict(level) for name, level in self.levels.items()}
        return plain | parts | {"levels": levels, "verdict": asdict(self.verdict)}


_PARTS = ("test", "power", "membership", "null_quantiles")


def _dict(part: Test | Power | Membership | NullQuantiles | None) -> dict[str, Any] | None:
    return None if part is None else asdict(part)


def _level_dict(level: LevelReport) -> dict[str, Any]:
    own = asdict(level.own)
    own["forgetting_score"]["per_sample"] = dict(level.per_sample)
    return own | {
        name: None if part is None else asdict(part)
        for name, part in (
            ("retained", level.retained),
            ("control", level.control),
            ("contrast", level.contrast),
        )
    }
