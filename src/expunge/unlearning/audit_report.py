"""What an audit says, as frozen records that turn into JSON. Computes nothing."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["encoder", "projector"]


VerdictCode = Literal["change_detected", "no_change_detected", "no_control", "too_few_samples"]
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
    """One level's statistics of the own samples, or of the control."""

    forgetting_score: Statistic
    negative_alignment: NegativeAlignment | None


@dataclass(frozen=True)
class Difference:
    """Own minus control, with the interval at the asked confidence and adjusted for the looks."""

    difference: float
    interval: list[float]
    adjusted_interval: list[float]

    @property
    def excludes_zero(self) -> bool:
        """Whether the adjusted interval lies on one side of zero."""
        low, high = self.adjusted_interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Contrast:
    """How the own samples' change differs from the control's."""

    forgetting_score: Difference
    negative_alignment_change: Difference


@dataclass(frozen=True)
class LevelReport:
    """Everything measured on one kind of output."""

    own: Group
    per_sample: dict[str, float]
    """Forgetting score by the owner's own keys."""
    control: Group | None
    contrast: Contrast | None


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
    n_control: int
    views: int
    seed: int
    confidence: float
    verdict: Verdict
    matrices: dict[Level, dict[str, Matrix]] = field(repr=False)
    """Per level `before`, `after` and `gap` = before - after, (m, m) float32."""
    matrix_keys: list[str]
    """Keys of the matrices' m rows."""

    def to_dict(self) -> dict[str, Any]:
        """The report without matrices, ready for JSON."""
        return {
            "levels": {name: _level_dict(level) for name, level in self.levels.items()},
            "n_own": self.n_own,
            "n_control": self.n_control,
            "views": self.views,
            "seed": self.seed,
            "confidence": self.confidence,
            "verdict": asdict(self.verdict),
            "matrix_keys": list(self.matrix_keys),
        }


def _level_dict(level: LevelReport) -> dict[str, Any]:
    own = asdict(level.own)
    own["forgetting_score"]["per_sample"] = dict(level.per_sample)
    return own | {
        "control": None if level.control is None else asdict(level.control),
        "contrast": None if level.contrast is None else asdict(level.contrast),
    }
