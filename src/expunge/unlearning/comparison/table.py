"""From finished runs to rows: means over seeds, gaps, flags, tests against Retrain.

Trains and evaluates nothing.
"""

from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.stats import kendalltau, spearmanr  # type: ignore[import-untyped]

from expunge.unlearning.comparison.estimates import combine
from expunge.unlearning.comparison.gaps import (
    as_gap,
    average_gap_terms,
    difference,
    overdone,
    proxy_gap_terms,
    tug_of_war,
)
from expunge.unlearning.comparison.records import Cell, RankAgreement, Relearning, Row, SeedTests
from expunge.unlearning.comparison.relearning import RELEARN_CAP
from expunge.unlearning.comparison.runs import FORGETTING_SCORE, Reference, Run, Setting
from expunge.unlearning.metrics.measure import Measure, mean_of
from expunge.unlearning.metrics.two_sample import kolmogorov_smirnov, mann_whitney

SECONDS_PER_MINUTE = 60
MIN_RANKED = 3


def make_row(setting: Setting, reference: Reference) -> Row:
    """One row of the table; numbers only of the seeds that succeeded, against the same seeds."""
    runs = setting.runs
    retrain = reference.retrain if setting.kind != "retrain" and runs else None
    compared = [*setting.columns, *([FORGETTING_SCORE] if setting.kind == "candidate" else [])]
    differences = {name: difference(setting, retrain, name) for name in compared} if retrain else {}
    tables = [run.evaluation.table() for run in runs]
    scores = [mean_of(run.forgetting, seed=run.seed) for run in runs if run.forgetting is not None]
    forgetting = differences.get(FORGETTING_SCORE)
    proxy = proxy_gap_terms(setting, reference.before)
    others = retrain.under_the_seeds_of(setting).runs if retrain else []
    return Row(
        kind=setting.kind,
        label=setting.label,
        method=setting.candidate.method if setting.candidate else None,
        params=setting.candidate.params if setting.candidate else None,
        columns={name: cell([table[name] for table in tables]) for name in setting.columns},
        forgetting_score=cell(scores) if scores else None,
        minutes=_minutes(runs),
        gaps={name: as_gap(differences[name]) for name in setting.columns if retrain},
        avg_gap=as_gap(combine(average_gap_terms(setting, retrain))) if retrain else None,
        forgetting_score_gap=as_gap(forgetting) if forgetting else None,
        proxy_gap=as_gap(combine(proxy)) if proxy else None,
        tow=tug_of_war(differences),
        over_unlearned=overdone(differences),
        tests=[_tests(run, other) for run, other in zip(runs, others, strict=bool(others))],
        relearning=_relearning(setting) if reference.relearn else None,
        best_epochs=[run.best_epoch for run in runs if run.best_epoch is not None] or None,
        reused=any(run.reused for run in runs),
        failure=_first_failure(setting),
    )


def cell(measures: Sequence[Measure]) -> Cell:
    """Mean and spread over seeds of one number; see `Cell` for its interval."""
    values = [each.value for each in measures]
    ends = [each.interval for each in measures if each.interval is not None]
    interval = [fmean(each) for each in zip(*ends, strict=True)]
    return Cell(
        mean=fmean(values),
        std=_spread(values),
        interval=interval if len(ends) == len(measures) else None,
        n=measures[0].n,
        seeds=[each.seed for each in measures],
    )


def rank_agreement(rows: Sequence[Row]) -> RankAgreement | None:
    """Of proxy and average gaps over candidates without failure.

    None with fewer than three, or where all have the same gap.
    """
    ranked = [
        (row.proxy_gap.value, row.avg_gap.value)
        for row in rows
        if row.kind == "candidate" and row.failure is None and row.proxy_gap and row.avg_gap
    ]
    if len(ranked) < MIN_RANKED or any(len(set(gaps)) == 1 for gaps in zip(*ranked, strict=True)):
        return None
    proxies, gaps = zip(*ranked, strict=True)
    return RankAgreement(
        kendall_tau=float(kendalltau(proxies, gaps).statistic),
        spearman_rho=float(spearmanr(proxies, gaps).statistic),
        n=len(ranked),
    )


def _minutes(runs: Sequence[Run]) -> Cell | None:
    timed = [(run.seed, run.seconds) for run in runs if run.seconds is not None]
    if not timed:
        return None
    minutes = [seconds / SECONDS_PER_MINUTE for _, seconds in timed]
    seeds = [seed for seed, _ in timed]
    return Cell(fmean(minutes), _spread(minutes), interval=None, n=None, seeds=seeds)


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _tests(run: Run, retrain: Run) -> SeedTests:
    own, other = (each.evaluation.scores["forget"].alignment for each in (run, retrain))
    return SeedTests(run.seed, kolmogorov_smirnov(own, other), mann_whitney(own, other))


def _relearning(setting: Setting) -> Relearning | None:
    if setting.kind == "before" or not setting.runs:
        return None
    return Relearning(
        epochs=[run.relearned for run in setting.runs],
        cap=RELEARN_CAP,
        seeds=[run.seed for run in setting.runs],
    )


def _first_failure(setting: Setting) -> str | None:
    for failure in setting.failures:
        return f"seed {failure.seed}: {failure.reason}"
    return None
