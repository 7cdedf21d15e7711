"""Compare unlearning methods on one checkpoint for one removal request.

Never changes the checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.unlearning.candidates import Candidate, Objective
from expunge.unlearning.catalog import parse_params
from expunge.unlearning.comparison.estimates import Term
from expunge.unlearning.comparison.gaps import (
    average_gap_terms,
    proxy_gap_terms,
    uncertainty_between,
)
from expunge.unlearning.comparison.oracle import OracleStore
from expunge.unlearning.comparison.recommendation import recommend
from expunge.unlearning.comparison.records import Comparison, Row, Settings
from expunge.unlearning.comparison.running import Bench, Laboratory, OnComparisonProgress
from expunge.unlearning.comparison.runs import Reference, Setting, sample_scores
from expunge.unlearning.comparison.table import make_row, rank_agreement
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.evaluation import Protocol
from expunge.unlearning.frameworks import Learner

CHANCE_AUC = 0.5


def compare(
    learner: Learner,
    retain: ImageSet,
    forget: ImageSet,
    test: ImageSet,
    candidates: Sequence[Candidate],
    *,
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
    """Run every candidate under every seed and set the paper's table up (`science.md`, Metrics).

    `candidates` as `candidates.expand` makes them. `retrain`: parameters of Retrain, absent ones by
    the framework's defaults; None for a comparison without, which is decided by the proxy gap.
    `oracle` keeps Retrain's weights for later comparisons. `keep_best` measures candidates after each
    epoch and keeps the one with the smallest proxy gap. A candidate whose loss or outputs are
    not finite, or whose run otherwise ends in a TrainingError, is a row with its reason.
    `on_progress` may raise anything but TrainingError and ValueError to stop.

    Raises ValueError for candidates or seeds that are missing or occur twice, sets that cannot be
    measured, or parameters out of bounds; TrainingError if Retrain fails.
    """
    framework = learner.spec.framework
    for candidate in candidates:
        parse_params(candidate.method, framework, candidate.params)
    labels = {candidate.label for candidate in candidates}
    if not candidates or len(labels) < len(candidates):
        raise ValueError("a comparison needs candidates, each once")
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
    laboratory = Laboratory(bench, len(candidates), on_progress)
    settings = [laboratory.run(candidate) for candidate in candidates]
    return tabulate(bench.settings(), laboratory.reference, settings)


def tabulate(settings: Settings, reference: Reference, candidates: Sequence[Setting]) -> Comparison:
    """The comparison of finished runs."""
    every = [reference.before, *([reference.retrain] if reference.retrain else []), *candidates]
    rows = [make_row(setting, reference) for setting in every]
    terms = {setting.label: decisive_terms(setting, reference) for setting in candidates}

    def uncertainty(one: Row, other: Row) -> float | None:
        return uncertainty_between(terms[one.label], terms[other.label])

    return Comparison(
        settings=settings,
        rows=rows,
        rank_agreement=rank_agreement(rows),
        recommended=recommend(rows, criterion_of(reference), uncertainty),
        notes=_notes(settings, reference, rows),
        samples=[scores for setting in every for scores in sample_scores(setting)],
    )


def criterion_of(reference: Reference) -> Objective:
    """Retrain decides where there is one."""
    return "retrain" if reference.retrain else "proxy"


def decisive_terms(
    setting: Setting, reference: Reference, criterion: Objective | None = None
) -> list[Term]:
    """Terms whose sum is the gap that decides, or the one asked for."""
    if (criterion or criterion_of(reference)) == "retrain" and reference.retrain:
        return average_gap_terms(setting, reference.retrain)
    return proxy_gap_terms(setting, reference.before)


def _notes(settings: Settings, reference: Reference, rows: Sequence[Row]) -> list[str]:
    notes = []
    attack = reference.before.runs[0].evaluation.emia
    unsure = attack.auc.interval is None or attack.auc.interval[0] <= CHANCE_AUC
    if unsure and "emia" in reference.before.columns:
        notes.append(
            "Before unlearning the encoder attack cannot tell retained from test samples "
            f"(AUC {attack.auc.value:.2f}), so EMIA says nothing about forgetting here."
        )
    if len(settings.seeds) == 1:
        notes.append("One seed: how much the numbers vary from run to run is not known.")
    if settings.keep_best:
        notes.append(
            "Each candidate's best epoch was chosen by the test samples that its row is measured "
            "on, which flatters its proxy gap, and may flatter its other columns."
        )
    failed = sum(row.failure is not None for row in rows)
    if failed:
        notes.append(f"{failed} of {len(rows)} settings failed; each row says why.")
    if settings.retrain is None:
        notes.append(
            "Without Retrain there is no truth to compare with: the proxy gap takes samples never "
            "trained on for what forgotten ones should look like."
        )
    return notes
