"""What the control tells: how large an honest effect is, how likely this audit finds it, and whether
own samples still look trained on. Never decides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.audit.outputs import Level, Outputs, Reference
from expunge.evidence.audit.permutation import (
    Outcome,
    conspicuous,
    plain_draws,
    share_as_large,
    studentised,
)
from expunge.evidence.audit.report import Membership, Power
from expunge.evidence.audit.verdict import ALPHA, TARGET_POWER

Array = NDArray[np.float64]

MAX_SAMPLES_NEEDED = 1_000_000
UNSHARED = 0.6
"""Of the control's spread of self-alignment: how much a retrain's effect varies from sample to
sample. Encoders trained apart agree on which samples are hard; between one and its exact retrain
(MoCo, 384 CIFAR-10 images) 0.62 was left of it at the encoder, 0.56 at the projector."""


@dataclass(frozen=True)
class Effect:
    """What an exact retrain would add to one level's forgetting scores: mean and spread."""

    mean: float
    std: float


def power_against_retrain(outcome: Outcome, n: int, effects: Mapping[Level, Effect]) -> Power:
    """Share of permutation draws found, were the effect added to their forgetting scores.

    The draws stand for what n samples do by chance, widened where the effect varies more from
    sample to sample; for other n it counts sqrt(n) times as much against them. Other looks are
    taken to gain nothing: the true power may be larger.
    """
    spread = outcome.values.std(axis=0)
    bar = _bar(conspicuous(outcome.z))
    as_they_are = np.maximum(outcome.z[1:], 0) ** 2
    unmoved, moved = np.zeros(len(as_they_are)), []
    for k, (level, look) in enumerate(outcome.looks):
        if look.name == "forgetting_score" and spread[k] > 0:
            width = max(1.0, effects[level].std / np.sqrt(n) / spread[k])
            moved.append((outcome.z[1:, k] * width, effects[level].mean / spread[k]))
        else:
            unmoved += as_they_are[:, k]

    def power(samples: int) -> float:
        scale = np.sqrt(samples / n)
        shifted = [np.maximum(z + shift * scale, 0) ** 2 for z, shift in moved]
        return float(np.mean(sum(shifted, start=unmoved) >= bar))

    return Power(
        effect={level: effect.mean for level, effect in effects.items()},
        power=power(n),
        target=TARGET_POWER,
        samples_needed=_fewest(power, n) if any(shift > 0 for _, shift in moved) else None,
    )


def retrain_effect(retained: Reference, control: Reference) -> dict[Level, Effect]:
    """Per level: self-alignment after, mean of retained minus mean of control samples.

    After an exact retrain own samples are to the encoder what the control is, and before it they
    were what the retained are: so much lower their self-alignment would be than that of these.
    """
    effects = {}
    for level, outputs in retained.levels.items():
        unseen = control.levels[level].after.aligned
        mean = float(outputs.after.aligned.mean() - unseen.mean())
        effects[level] = Effect(mean, UNSHARED * float(unseen.std()))
    return effects


def membership(
    own: Mapping[Level, Outputs], control: Reference, rng: np.random.Generator
) -> Membership:
    """Permutation test of own against control samples on self-alignment under the encoder after."""
    levels = list(own)
    groups = [
        (own[level].after.aligned[own[level].chosen], control.levels[level].after.aligned)
        for level in levels
    ]
    draws = plain_draws(len(groups[0][0]), len(control), rng)
    values = np.stack([np.concatenate(pair)[draws].mean(axis=1) for pair in groups], axis=1)
    return Membership(
        p=share_as_large(conspicuous(studentised(values))),
        difference={
            level: float(mine.mean() - theirs.mean())
            for level, (mine, theirs) in zip(levels, groups, strict=True)
        },
    )


def _bar(statistics: Array) -> float:
    """The smallest of the statistics whose p-value is at most alpha; infinite if none is rare enough."""
    values, rank = np.unique(statistics, return_inverse=True)
    reached = np.bincount(rank)[::-1].cumsum()[::-1] <= ALPHA * len(rank)
    return float(values[reached].min(initial=np.inf))


def _fewest(power: Callable[[int], float], n: int) -> int | None:
    """Smallest number of samples with the target power; `power` grows with it."""
    low, high = 0, n
    while power(high) < TARGET_POWER:
        low, high = high, high * 2
        if high > MAX_SAMPLES_NEEDED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= TARGET_POWER else (middle, high)
    return high
