"""Search a method's parameters with Optuna's tree-structured Parzen estimator.

Never changes the checkpoint; every setting tried is a row of the table it returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from expunge.unlearning.candidates import (
    Objective,
    Range,
    is_whole,
    make_candidate,
    search_ranges,
)
from expunge.unlearning.comparison.comparing import decisive_terms, tabulate
from expunge.unlearning.comparison.estimates import combine
from expunge.unlearning.comparison.oracle import OracleStore
from expunge.unlearning.comparison.records import Comparison
from expunge.unlearning.comparison.running import Bench, Laboratory, OnComparisonProgress
from expunge.unlearning.comparison.runs import Reference, Setting
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.evaluation import Protocol
from expunge.unlearning.frameworks import Learner

DIGITS = 4
"""Significant ones of a suggested value: more would only make labels long."""


def search(
    learner: Learner,
    retain: ImageSet,
    forget: ImageSet,
    test: ImageSet,
    method: str,
    *,
    ranges: Mapping[str, Range] | None = None,
    trials: int,
    objective: Objective,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    seeds: Sequence[int] = (0,),
    retrain: Mapping[str, Any] | None = None,
    device: str = "auto",
    protocol: Protocol = "corrected",
    oracle: OracleStore | None = None,
    relearn: bool = False,
    keep_best: bool = False,
    recompute: bool = False,
    on_progress: OnComparisonProgress | None = None,
) -> Comparison:
    """Try `trials` settings of `method`, each chosen in the light of those before.

    `ranges` by parameter, by default those of `candidates.SEARCH_RANGES`; `params` are fixed.
    `seed` is the sampler's, `seeds` are those of every run. `objective`: what is minimised, the
    average gap to Retrain (whose parameters are `retrain`, {} for the defaults) or the proxy gap. A
    setting that fails counts as infinitely bad; one suggested again is not run again. With the
    objective `proxy` and Retrain as well, the search goes by the proxy, the recommendation by
    Retrain, and `rank_agreement` says how far that differs.

    Raises ValueError for trials below 1, ranges that do not fit, or an objective without Retrain;
    otherwise as `compare`.
    """
    framework = learner.spec.framework
    fixed = dict(params or {})
    chosen = search_ranges(method, framework, ranges, fixed=fixed)
    if trials < 1:
        raise ValueError("a search needs at least one trial")
    if objective == "retrain" and retrain is None:
        raise ValueError("the objective 'retrain' needs Retrain's parameters")
    bench = Bench(
        learner=learner,
        retain=retain,
        forget=forget,
        test=test,
        seeds=list(seeds),
        retrain=retrain,
        device=device,
        protocol=protocol,
        oracle=oracle,
        relearn=relearn,
        keep_best=keep_best,
        recompute=recompute,
    )
    laboratory = Laboratory(bench, trials, on_progress)
    tried: dict[str, Setting] = {}
    study = _study(seed)
    for _ in range(trials):
        trial = study.ask()
        given = {name: _suggest(trial, method, name, each) for name, each in chosen.items()}
        candidate = make_candidate(method, framework, {**fixed, **given})
        if candidate.label in tried:
            laboratory.skip(candidate)
        else:
            tried[candidate.label] = laboratory.run(candidate)
        study.tell(trial, _value(tried[candidate.label], laboratory.reference, objective))
    record = {
        "method": method,
        "ranges": {name: each.model_dump() for name, each in chosen.items()},
        "trials": trials,
        "objective": objective,
        "seed": seed,
    }
    return tabulate(bench.settings(record), laboratory.reference, list(tried.values()))


def _suggest(trial: optuna.Trial, method: str, name: str, bounds: Range) -> float | int:
    if is_whole(method, name):
        return trial.suggest_int(name, round(bounds.low), round(bounds.high), log=bounds.log)
    value = trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)
    return min(max(float(f"{value:.{DIGITS}g}"), bounds.low), bounds.high)


def _value(setting: Setting, reference: Reference, objective: Objective) -> float:
    if setting.failures:
        return float("inf")
    return combine(decisive_terms(setting, reference, objective)).value


def _study(seed: int) -> optuna.Study:
    """An in-memory study, made without a line on standard error."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    finally:
        optuna.logging.set_verbosity(before)
