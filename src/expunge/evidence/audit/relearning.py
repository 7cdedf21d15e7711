"""Whether a later encoder knows forgotten samples again, against samples that were never trained on.

Two things must both be seen: between the two encoders the views of the own samples have come closer
together than the control's did, and under the later one they are closer together than the control's
are. The second keeps quiet where an encoder that pushed views too far apart is followed by one that
treats them like any others. Both are asked among images of one kind: how closely an encoder draws the
views of dogs together, and what a later one changes about it, is no news of an owner of dogs. Never
looks at the encoder from before the removal.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

from expunge.evidence.audit.outputs import Level, Outputs
from expunge.evidence.audit.strata import matched_draws, strata, tested

Array = NDArray[np.float64]

ALPHA = 0.001
"""Of one test. A service tests many requests: of 1,000 honest ones, one alarm is to be expected."""
MIN_SAMPLES = 8
"""Of either group; with 8 against 8 the smallest p-value is one in 12,870."""
PERMUTATIONS = 9_999
CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Of the sum of all values: the same samples in another order count as equally large."""


@dataclass(frozen=True)
class Rise:
    """One level. All in cosine: 1 is the largest self-alignment that there can be."""

    rise: float
    """Own minus control: mean change of self-alignment from the earlier to the later encoder."""
    interval: list[float]
    """Of `rise`, 95 %, Welch's."""
    effect_size: float
    """`rise` in pooled standard deviations of the samples' changes (Cohen's d)."""
    p_rise: float
    excess: float
    """Own minus control: mean self-alignment under the later encoder."""
    p_excess: float

    @property
    def p(self) -> float:
        """That one of both is chance (Berger's intersection-union test)."""
        return max(self.p_rise, self.p_excess)


@dataclass(frozen=True)
class Relearning:
    """The test's outcome; holds nothing of a single sample."""

    p: float
    """Over all levels, times their number (Bonferroni)."""
    relearned: bool
    level: Level
    """Where it shows most."""
    levels: dict[Level, Rise]
    n_own: int
    n_control: int

    @property
    def sentence(self) -> str:
        """The finding in words."""
        found = self.levels[self.level]
        low, high = found.interval
        return (
            f"Under the later head, views of these {self.n_own} samples have come closer together "
            f"again than those of {self.n_control} images never trained on ({self.level} outputs: "
            f"by {found.rise:.3f} [{low:.3f}, {high:.3f}] more, and {found.excess:.3f} above them; "
            f"p = {self.p:.2g})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        levels = {name: asdict(rise) | {"p": rise.p} for name, rise in self.levels.items()}
        return asdict(self) | {"levels": levels, "alpha": ALPHA}


def relearning(
    own: Mapping[Level, Outputs],
    control: Mapping[Level, Outputs],
    *,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Relearning | None:
    """Test whether the later of two encoders knows the own samples again; None below 8 samples a group.

    `before` of the outputs is an encoder that forgot the own samples, `after` a later one. H0: own
    samples and control are exchangeable in how their self-alignment changed, or in how large it is
    now. One-sided permutation tests of both within kinds of images (`strata`), joined by the larger
    p-value: valid at any size. It is about the own samples that are `tested` and `comparable`; None if
    fewer than 8 are. Repeats give the same numbers.
    """
    n, m = (len(group["encoder"].chosen) for group in (own, control))
    if min(n, m) < MIN_SAMPLES:
        return None
    rng = np.random.default_rng([seed, n, m])
    about = tested(n, m, rng)
    kinds = strata(own["encoder"].before.centres[about], control["encoder"].before.centres, rng)
    places = matched_draws(kinds, len(about), rng, permutations)
    if places.shape[1] < MIN_SAMPLES:
        return None
    draws = np.concatenate([about, np.arange(n, n + m)])[places]
    levels = {level: _rise(own[level], control[level], draws) for level in own}
    level = min(levels, key=lambda each: (levels[each].p, -levels[each].rise))
    p = min(1.0, len(levels) * levels[level].p)
    return Relearning(p, p <= ALPHA, level, levels, draws.shape[1], m)


def expected_false_alarms(tests: int) -> float:
    """Alarms that chance alone may raise in so many tests, on average and at most."""
    return ALPHA * tests


def _rise(own: Outputs, control: Outputs, draws: NDArray[np.int64]) -> Rise:
    change = -np.concatenate([own.scores[own.chosen], control.scores[control.chosen]])
    now = np.concatenate([own.after.aligned[own.chosen], control.after.aligned[control.chosen]])
    about, others = draws[0], slice(len(own.chosen), None)
    rise = float(change[about].mean() - change[others].mean())
    return Rise(
        rise=rise,
        interval=_interval(change[about], change[others]),
        effect_size=_effect_size(rise, change[about], change[others]),
        p_rise=_p(change, draws),
        excess=float(now[about].mean() - now[others].mean()),
        p_excess=_p(now, draws),
    )


def _p(values: Array, draws: NDArray[np.int64]) -> float:
    """One-sided: share of the draws, the own samples first, whose mean is as large as theirs."""
    # The sum of all is fixed, so the sum of one group says how far apart the means are.
    drawn = values[draws].sum(axis=1)
    return float(np.mean(drawn >= drawn[0] - ROUNDING * np.abs(values).sum()))


def _interval(own: Array, control: Array) -> list[float]:
    """Of the difference of the means, Welch's; without a warning where all samples changed alike."""
    difference = float(own.mean() - control.mean())
    squares = [group.var(ddof=1) / len(group) for group in (own, control)]
    if not any(squares):
        return [difference, difference]
    freedom = sum(squares) ** 2 / sum(
        square**2 / (len(group) - 1) for square, group in zip(squares, (own, control), strict=True)
    )
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(sum(squares)))
    return [difference - reach, difference + reach]


def _effect_size(rise: float, own: Array, control: Array) -> float:
    n, m = len(own), len(control)
    pooled = ((n - 1) * own.var(ddof=1) + (m - 1) * control.var(ddof=1)) / (n + m - 2)
    return rise / float(np.sqrt(pooled)) if pooled > 0 else 0.0
