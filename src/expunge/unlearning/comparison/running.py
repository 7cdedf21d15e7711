"""Runs what a comparison needs: the references once per seed, then every candidate.

Keeps nothing on disk but what the oracle store keeps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import torch

from expunge.unlearning.candidates import REFERENCE_METHOD, Candidate
from expunge.unlearning.catalog import parse_params
from expunge.unlearning.comparison.estimates import combine
from expunge.unlearning.comparison.gaps import proxy_gap_terms
from expunge.unlearning.comparison.oracle import OracleStore, retrained
from expunge.unlearning.comparison.records import BEFORE, RETRAIN, Settings
from expunge.unlearning.comparison.relearning import (
    MIN_SAMPLES,
    LossLevel,
    loss_level,
    relearn_epochs,
)
from expunge.unlearning.comparison.runs import Failure, Reference, Run, Setting
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.errors import TrainingError
from expunge.unlearning.evaluation import Evaluation, Protocol, evaluate
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.hardware import precision_for, resolve_device
from expunge.unlearning.training import OnProgress, Progress, Score, unlearn


@dataclass(frozen=True)
class ComparisonProgress:
    """Where a comparison stands: finished runs, and the one at work."""

    done: int
    total: int
    """Runs in all: each seed of the checkpoint before, of Retrain, and of every candidate."""
    label: str
    """Of the row at work; of the last one at the end."""
    seed: int
    training: Progress | None
    """None while a run is being prepared or evaluated."""


OnComparisonProgress = Callable[[ComparisonProgress], None]


@dataclass(frozen=True)
class Bench:
    """One checkpoint, one removal request, and how every row is run and measured."""

    learner: Learner
    retain: ImageSet
    forget: ImageSet
    test: ImageSet
    seeds: Sequence[int] = (0,)
    retrain: Mapping[str, Any] | None = None
    """Parameters of Retrain, absent ones by the framework's defaults; None: no Retrain."""
    device: str = "auto"
    protocol: Protocol = "corrected"
    oracle: OracleStore | None = None
    relearn: bool = False
    keep_best: bool = False
    """Whether candidates are measured after every epoch, and the epoch with the smallest proxy gap
    is what they return; the time that takes is not counted."""
    recompute: bool = False
    """Less memory, the same weights, longer times; see `unlearning.recomputation`."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a comparison needs seeds, each once")
        if self.relearn and len(self.forget) < MIN_SAMPLES:
            raise ValueError("relearning needs at least two unlearn samples")

    def settings(self, search: dict[str, Any] | None = None) -> Settings:
        """What is compared, for the record."""
        framework = self.learner.spec.framework
        params = None
        if self.retrain is not None:
            params = parse_params(REFERENCE_METHOD, framework, self.retrain).model_dump()
        device = resolve_device(self.device)
        return Settings(
            framework=framework,
            protocol=self.protocol,
            seeds=list(self.seeds),
            sizes={
                "retain": len(self.retain),
                "forget": len(self.forget),
                "test": len(self.test),
            },
            retrain=params,
            relearn=self.relearn,
            keep_best=self.keep_best,
            device=device.type,
            precision=precision_for(device),
            torch=torch.__version__,
            search=search,
        )

    def evaluate(self, learner: Learner, seed: int) -> Evaluation:
        """The white-box table of one encoder."""
        sets = (self.retain, self.forget, self.test)
        return evaluate(learner, *sets, seed=seed, device=self.device, protocol=self.protocol)


class Laboratory:
    """Runs settings on a bench and counts them; the references are run as it is made.

    `on_progress` may raise anything but TrainingError and ValueError to stop. Raises TrainingError
    or ValueError where a reference cannot be run or measured.
    """

    def __init__(
        self, bench: Bench, candidates: int, on_progress: OnComparisonProgress | None
    ) -> None:
        self.bench = bench
        self._on_progress = on_progress
        self._done = 0
        self._total = len(bench.seeds) * (1 + (bench.retrain is not None) + candidates)
        before = [self._measure_before(seed) for seed in bench.seeds]
        self._before = {run.seed: run for run in before}
        self._levels = {}
        if bench.relearn:
            self._levels = {seed: self._level(seed) for seed in bench.seeds}
        self.reference = Reference(
            before=Setting("before", BEFORE, before),
            retrain=None if bench.retrain is None else self._retrain(bench.retrain),
            relearn=bench.relearn,
        )

    def run(self, candidate: Candidate) -> Setting:
        """Unlearn and measure under every seed; a run that fails is its reason."""
        runs: list[Run] = []
        failures: list[Failure] = []
        for seed in self.bench.seeds:
            try:
                runs.append(self._run(candidate, seed))
            except (TrainingError, ValueError) as error:
                failures.append(Failure(seed, str(error)))
            self._finish(candidate.label, seed)
        return Setting("candidate", candidate.label, runs, candidate, failures)

    def skip(self, candidate: Candidate) -> None:
        """Count a setting whose runs are known already."""
        for seed in self.bench.seeds:
            self._finish(candidate.label, seed)

    def _measure_before(self, seed: int) -> Run:
        self._report(BEFORE, seed)
        run = Run(seed, self.bench.evaluate(self.bench.learner, seed))
        self._finish(BEFORE, seed)
        return run

    def _level(self, seed: int) -> LossLevel:
        bench = self.bench
        return loss_level(bench.learner, bench.forget, seed=seed, device=bench.device)

    def _retrain(self, given: Mapping[str, Any]) -> Setting:
        bench = self.bench
        params = parse_params(REFERENCE_METHOD, bench.learner.spec.framework, given)
        runs = []
        for seed in bench.seeds:
            result = retrained(
                bench.oracle,
                bench.learner,
                bench.retain,
                bench.forget,
                params,
                seed=seed,
                device=bench.device,
                on_progress=self._inner(RETRAIN, seed),
                recompute=bench.recompute,
            )
            run = self._measured(result.learner, seed, result.seconds, RETRAIN)
            runs.append(replace(run, reused=result.reused))
            self._finish(RETRAIN, seed)
        as_candidate = Candidate(method=REFERENCE_METHOD, params=params.model_dump(), label=RETRAIN)
        return Setting("retrain", RETRAIN, runs, as_candidate)

    def _run(self, candidate: Candidate, seed: int) -> Run:
        bench = self.bench
        result = unlearn(
            bench.learner,
            bench.retain,
            bench.forget,
            candidate.method,
            candidate.params,
            seed=seed,
            device=bench.device,
            on_progress=self._inner(candidate.label, seed),
            score=self._score(seed) if bench.keep_best else None,
            recompute=bench.recompute,
        )
        run = self._measured(result.learner, seed, result.seconds, candidate.label)
        return replace(run, best_epoch=result.best_epoch)

    def _score(self, seed: int) -> Score:
        """The proxy gap under one seed; an encoder that cannot be measured is never the best."""
        before = Setting("before", BEFORE, [self._before[seed]])

        def score(learner: Learner) -> float:
            try:
                run = Run(seed, self.bench.evaluate(learner, seed))
            except ValueError:
                return nan
            return combine(proxy_gap_terms(Setting("candidate", "", [run]), before)).value

        return score

    def _measured(self, learner: Learner, seed: int, seconds: float, label: str) -> Run:
        bench = self.bench
        self._report(label, seed)
        evaluation = bench.evaluate(learner, seed)
        before = self._before[seed].evaluation.scores["forget"].alignment
        relearned = None
        if bench.relearn:
            level = self._levels[seed]
            relearned = relearn_epochs(learner, bench.forget, level, seed=seed, device=bench.device)
        return Run(
            seed=seed,
            evaluation=evaluation,
            forgetting=before - evaluation.scores["forget"].alignment,
            seconds=seconds,
            relearned=relearned,
        )

    def _inner(self, label: str, seed: int) -> OnProgress:
        self._report(label, seed)
        return lambda training: self._report(label, seed, training)

    def _finish(self, label: str, seed: int) -> None:
        self._done += 1
        self._report(label, seed)

    def _report(self, label: str, seed: int, training: Progress | None = None) -> None:
        if self._on_progress is not None:
            self._on_progress(ComparisonProgress(self._done, self._total, label, seed, training))
