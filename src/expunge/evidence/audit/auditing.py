"""The audit: from outputs of own, retained and control samples to a report.

Pure arithmetic that anybody can repeat on outputs of their own samples. Never puts a retained or
control sample's key or own score into the report.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.evidence.audit.groups import Measured, contrast, measure_all, measure_reference, shown
from expunge.evidence.audit.looks import Pool
from expunge.evidence.audit.outputs import Level, Outputs, Reference
from expunge.evidence.audit.permutation import Outcome, permute, plain_draws
from expunge.evidence.audit.placing import null_quantiles
from expunge.evidence.audit.power import membership, power_against_retrain, retrain_effect
from expunge.evidence.audit.report import AuditReport, Draws, LevelReport, LookResult, Test
from expunge.evidence.audit.strata import (
    MIN_ALIKE,
    RETAINED_A_SAMPLE,
    matched_draws,
    strata,
    tested,
)
from expunge.evidence.audit.verdict import (
    ALPHA,
    ALPHA_USED,
    HYPOTHESIS,
    MIN_REFERENCE,
    too_late,
    verdict,
)

CONFIDENCE = 0.95
Z_DIGITS = 2


def audit(
    own: Mapping[Level, Outputs],
    keys: Sequence[str],
    retained: Reference | None = None,
    control: Reference | None = None,
    *,
    seed: int = 0,
    matrix_size: int = 64,
    confidence: float = CONFIDENCE,
    draws: Draws = "matched",
    held_before: bool = True,
) -> AuditReport:
    """Hold N own samples against samples that the model kept, and others that it never saw.

    own: outputs per level, all of the same samples; keys: their N names; retained: samples that both
    models were trained on, none of them the owner's; control: samples that neither was trained on.
    All under the same number of views and the same levels; draws: of the test, from samples of the
    own samples' kind (`strata`), or `plain` from all; held_before: whether the encoder before was
    trained on the own samples and had not forgotten them; else there is no test. Equal input gives
    equal numbers.

    Per level: forgetting score (eq. 2) and negative alignment with bootstrap intervals
    (`Resamples`); over all levels a permutation test of own among retained samples (`permute`), its
    power against an exact retrain, and a test of membership. Raises ValueError for keys that do not
    fit, or references with other levels or views.
    """
    first = next(iter(own.values()))
    _check(own, keys, [each for each in (retained, control) if each is not None])
    if retained is not None and (not held_before or len(retained) < MIN_REFERENCE):
        retained = None
    rng = np.random.default_rng([seed, 2])
    n = len(first.chosen)
    test = power = quantiles = None
    if retained is not None:
        test, outcome = _tested(own, retained, draws, rng)
        quantiles = null_quantiles(retained, n, seed)
        if control is not None and test is not None and outcome is not None:
            power = power_against_retrain(outcome, test.n, retrain_effect(retained, control))
    groups = {
        "own": measure_all(own, confidence),
        "retained": measure_reference(retained, confidence) if retained else {},
        "control": measure_reference(control, confidence) if control else {},
    }
    largest = max(
        outputs.largest_change() for level, outputs in own.items() if level != "projector"
    )
    # By its own draw: whoever has no reference shows the same samples.
    index = np.sort(np.random.default_rng([seed, 3]).permutation(n)[:matrix_size])
    return AuditReport(
        levels={level: _level(level, own[level], keys, groups, confidence) for level in own},
        n_own=len(first),
        n_retained=len(retained) if retained else 0,
        n_control=len(control) if control else 0,
        views=first.views,
        seed=seed,
        confidence=confidence,
        verdict=verdict(largest, len(first), len(retained) if retained else 0, test, power)
        if held_before
        else too_late(len(first)),
        test=test,
        power=power,
        membership=None if control is None else membership(own, control, rng),
        null_quantiles=quantiles,
        matrices={level: shown(outputs.matrices, index) for level, outputs in own.items()},
        matrix_keys=[keys[i] for i in first.chosen[index]],
    )


def _check(
    own: Mapping[Level, Outputs], keys: Sequence[str], references: Sequence[Reference]
) -> None:
    samples = {len(outputs) for outputs in own.values()}
    if samples != {len(keys)}:
        raise ValueError(f"{len(keys)} keys for {sorted(samples)} samples")
    views = {outputs.views for outputs in own.values()}
    for reference in references:
        views |= {outputs.views for outputs in reference.levels.values()}
        if set(reference.levels) != set(own):
            raise ValueError("own and reference outputs are of different levels")
    if len(views) > 1:
        raise ValueError("own and reference outputs are of different numbers of views")


def _tested(
    own: Mapping[Level, Outputs], retained: Reference, draws: Draws, rng: np.random.Generator
) -> tuple[Test | None, Outcome | None]:
    """The test and what it looked at; none where no own sample has enough retained ones of its kind."""
    pools = {level: Pool.of(own[level], retained.levels[level]) for level in own}
    mine, others = own["encoder"], retained.levels["encoder"]
    n, m = len(mine.chosen), len(others.chosen)
    if draws == "plain":
        drawn, alike = plain_draws(n, m, rng), m
    else:
        about = tested(n, m // RETAINED_A_SAMPLE, rng)
        kinds = strata(mine.before.centres[about], others.before.centres, rng)
        places = matched_draws(kinds, len(about), rng)
        alike = int(np.isin(kinds[len(about) :], kinds[places[0]]).sum())
        drawn = np.concatenate([about, np.arange(n, n + m)])[places]
    if not drawn.shape[1]:
        return None, None
    outcome = permute(pools, drawn)
    test = Test(
        hypothesis=HYPOTHESIS,
        alpha=ALPHA,
        p=outcome.p,
        p_used=outcome.p_used,
        alpha_used=ALPHA_USED,
        n=drawn.shape[1],
        n_reference=m,
        n_alike=alike // MIN_ALIKE * MIN_ALIKE,
        draws=len(outcome.values) - 1,
        reference=draws,
        looks=[
            LookResult(
                level=level,
                statistic=look.name,
                value=float(outcome.values[0, k]),
                z=round(float(outcome.z[0, k]), Z_DIGITS),
                p=outcome.p_of(k),
            )
            for k, (level, look) in enumerate(outcome.looks)
        ],
    )
    return test, outcome


def _level(
    level: Level,
    outputs: Outputs,
    keys: Sequence[str],
    groups: Mapping[str, Mapping[Level, Measured]],
    confidence: float,
) -> LevelReport:
    own, retained, control = (groups[name].get(level) for name in ("own", "retained", "control"))
    assert own is not None  # noqa: S101
    return LevelReport(
        own=own.group,
        per_sample=dict(zip(keys, outputs.scores.tolist(), strict=True)),
        retained=retained.group if retained else None,
        control=control.group if control else None,
        contrast=contrast(own, control, confidence) if control else None,
    )
