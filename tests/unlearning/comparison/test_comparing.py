import copy
import json
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest
import torch

from expunge.unlearning.candidates import expand
from expunge.unlearning.comparison import Comparison, ComparisonProgress, compare, table, to_dict
from expunge.unlearning.comparison.comparing import tabulate
from expunge.unlearning.comparison.records import Row
from expunge.unlearning.comparison.running import Bench, Laboratory
from expunge.unlearning.comparison.runs import Failure
from expunge.unlearning.errors import NonFiniteLossError
from expunge.unlearning.evaluation import Evaluation, evaluate
from expunge.unlearning.training import unlearn

COLUMNS = ["emia", "ra", "ta", "ua", "cmia"]


def slow_tables(compared: Any, method: str, params: dict[str, Any]) -> list[Evaluation]:
    """Unlearn and evaluate by hand, one seed after the other; no method: the checkpoint itself."""
    case, found = compared.case, []
    for seed in case.seeds:
        learner = case.learner
        if method:
            learner = unlearn(learner, *case.sets[:2], method, params, seed=seed).learner
        found.append(evaluate(learner, *case.sets, seed=seed))
    return found


def slow_mean(evaluations: list[Evaluation], column: str) -> float:
    return mean(each.table()[column].value for each in evaluations)


def row_of(result: Comparison, label: str) -> Row:
    (row,) = [row for row in result.rows if row.label.startswith(label)]
    return row


def test_a_row_is_what_running_it_by_hand_gives(compared: Any) -> None:
    """Means, spreads, gaps, ToW, FS and proxy gap by plain loops, for one candidate."""
    candidate = compared.case.candidates[0]
    row = row_of(compared.result, candidate.label)
    own = slow_tables(compared, candidate.method, candidate.params)
    before = slow_tables(compared, "", {})
    retrain = slow_tables(compared, "retrain", compared.case.retrain)
    for column in COLUMNS:
        values = [each.table()[column].value for each in own]
        assert row.columns[column].mean == pytest.approx(mean(values))
        assert row.columns[column].std == pytest.approx(stdev(values))
        assert row.columns[column].seeds == compared.case.seeds
        gap = abs(mean(values) - slow_mean(retrain, column))
        assert row.gaps[column].value == pytest.approx(gap)
        lows = [each.table()[column].interval[0] for each in own]
        assert row.columns[column].interval[0] == pytest.approx(mean(lows))
    assert row.avg_gap.value == pytest.approx(mean(row.gaps[c].value for c in COLUMNS))
    assert row.avg_gap.uncertainty > 0
    tow = 1.0
    for column in ("ua", "ra", "ta"):
        tow *= 1 - abs(slow_mean(own, column) - slow_mean(retrain, column)) / 100
    assert row.tow == pytest.approx(tow)
    scores = [slow_forgetting(b, a) for b, a in zip(before, own, strict=True)]
    assert row.forgetting_score.mean == pytest.approx(mean(scores))
    assert row.forgetting_score.n == 7
    reference = mean(slow_forgetting(b, a) for b, a in zip(before, retrain, strict=True))
    assert row.forgetting_score_gap.value == pytest.approx(abs(mean(scores) - reference))
    assert row.proxy_gap.value == pytest.approx(slow_proxy(own, before))


def slow_forgetting(before: Evaluation, after: Evaluation) -> float:
    pairs = zip(before.scores["forget"].alignment, after.scores["forget"].alignment, strict=True)
    return mean(float(b - a) for b, a in pairs)


def slow_proxy(own: list[Evaluation], before: list[Evaluation]) -> float:
    emia = mean(each.emia.specificity.value for each in own)
    cmia = mean(each.classification.cmia.specificity.value for each in own)
    return mean(
        [
            abs(slow_mean(own, "emia") - emia),
            abs(slow_mean(own, "cmia") - cmia),
            abs(slow_mean(own, "ua") - slow_mean(own, "ta")),
            abs(slow_mean(own, "ra") - slow_mean(before, "ra")),
            abs(slow_mean(own, "ta") - slow_mean(before, "ta")),
        ]
    )


def test_rows_are_the_checkpoint_retrain_and_the_candidates_in_order(compared: Any) -> None:
    rows = compared.result.rows
    labels = [candidate.label for candidate in compared.case.candidates]
    assert [row.label for row in rows] == ["Before", "Retrain", *labels]
    before, retrain = rows[:2]
    assert (before.method, before.forgetting_score, before.minutes) == (None, None, None)
    assert before.avg_gap.value > 0
    assert (retrain.avg_gap, retrain.gaps, retrain.tests, retrain.tow) == (None, {}, [], None)
    assert retrain.params["epochs"] == 1
    assert retrain.minutes.mean > 0


def test_a_candidate_that_diverges_is_a_row_with_its_reason_and_the_others_go_on(
    compared: Any,
) -> None:
    *well, broken = compared.result.rows
    assert broken.failure.startswith("seed 0: the loss is not finite in epoch 3")
    assert (broken.columns, broken.gaps, broken.avg_gap, broken.proxy_gap) == ({}, {}, None, None)
    assert all(row.failure is None and set(row.columns) == set(COLUMNS) for row in well)
    assert compared.result.recommended.label != broken.label
    assert any("1 of 7 settings failed" in note for note in compared.result.notes)


def test_a_row_with_one_failed_seed_is_compared_under_the_other(case: Any) -> None:
    bench = Bench(case.learner, *case.sets, seeds=case.seeds, retrain=case.retrain)
    laboratory = Laboratory(bench, 1, None)
    whole = laboratory.run(case.candidates[0])
    partial = replace(whole, runs=whole.runs[1:], failures=[Failure(0, "it broke")])
    row = table.make_row(partial, laboratory.reference)
    retrain = laboratory.reference.retrain.runs[1].evaluation.table()
    assert row.failure == "seed 0: it broke"
    assert row.columns["ra"].seeds == [3]
    for column, measure in whole.runs[1].evaluation.table().items():
        assert row.columns[column].mean == measure.value
        assert row.gaps[column].value == pytest.approx(abs(measure.value - retrain[column].value))
    assert [each.seed for each in row.tests] == [3]
    result = tabulate(bench.settings(), laboratory.reference, [partial])
    assert result.recommended is None


def test_outputs_that_are_not_finite_are_a_failure_too(case: Any) -> None:
    """After one epoch of this the losses were finite still, and the encoder is past measuring."""
    params = {"epochs": 1, "learning_rate": 10.0, "weight_decay": 1.0, "batch_size": 4}
    result = compare(
        case.learner, *case.sets, expand([{"method": "fine_tune", "params": params}], "simclr")
    )
    assert "outputs have diverged" in str(result.rows[-1].failure)
    assert result.recommended is None


def test_progress_counts_every_run_once(compared: Any) -> None:
    heard: list[ComparisonProgress] = compared.heard
    assert {each.total for each in heard} == {2 * 7}
    done = [each.done for each in heard]
    assert done == sorted(done)
    assert set(done) == set(range(15))
    inner = [each for each in heard if each.training is not None]
    assert {each.label for each in inner} >= {"Retrain", compared.case.candidates[0].label}
    assert inner[0].training.phase == "retrain"


def test_tests_against_retrain_have_one_result_a_seed(compared: Any) -> None:
    for row in compared.result.rows[2:-1]:
        assert [each.seed for each in row.tests] == compared.case.seeds
        assert all(0 <= each.kolmogorov_smirnov.p_value <= 1 for each in row.tests)
        assert all(each.mann_whitney.n == 7 for each in row.tests)


def test_samples_are_kept_for_every_row_and_seed(compared: Any) -> None:
    samples = compared.result.samples
    assert len(samples) == 2 * 6
    row = row_of(compared.result, compared.case.candidates[0].label)
    kept = [each for each in samples if each.label == row.label]
    assert [each.keys for each in kept] == [compared.case.sets[1].keys] * 2
    judged = mean(100 * float(each.judged["emia"].mean()) for each in kept)
    assert row.columns["emia"].mean == pytest.approx(judged)
    scores = mean(float(each.forgetting_score.mean()) for each in kept)
    assert row.forgetting_score.mean == pytest.approx(scores)


def test_the_same_comparison_gives_the_same_numbers_with_less_memory_too_and_changes_nothing(
    case: Any,
) -> None:
    before = copy.deepcopy(case.learner.state_dict())
    results = []
    for recompute in (False, True):
        torch.rand(3)  # The global generator's state must not matter.
        candidates, options = case.candidates[:2], {"seeds": [3], "recompute": recompute}
        report = to_dict(compare(case.learner, *case.sets, candidates, **options))
        for row in report["rows"]:
            row["minutes"] = None
        # The choice between ties goes by run time, which is not repeatable.
        report["recommended"] = None
        results.append(json.dumps(report))
    assert results[0] == results[1]
    assert all(torch.equal(value, before[n]) for n, value in case.learner.state_dict().items())


def test_without_retrain_the_proxy_decides(case: Any) -> None:
    result = compare(case.learner, *case.sets, case.candidates[:3])
    assert all(row.avg_gap is None and row.tests == [] for row in result.rows)
    assert result.rank_agreement is None
    assert result.recommended.criterion == "proxy"
    assert result.settings.retrain is None
    assert any("Without Retrain" in note for note in result.notes)
    assert any("One seed" in note for note in result.notes)


def test_without_labels_the_table_is_emia_alone(case: Any) -> None:
    bare = tuple(replace(images, labels=None) for images in case.sets)
    result = compare(case.learner, *bare, case.candidates[:1], retrain=case.retrain)
    row = result.rows[-1]
    assert set(row.columns) == set(row.gaps) == {"emia"}
    assert row.avg_gap == row.gaps["emia"]
    assert row.tow is None
    own = evaluate(
        unlearn(case.learner, *case.sets[:2], row.method, row.params, seed=0).learner, *bare
    ).emia
    proxy = abs(own.efficacy.value - own.specificity.value)
    assert row.proxy_gap.value == pytest.approx(proxy)


def test_retrain_that_fails_ends_the_comparison(case: Any) -> None:
    bad = {"epochs": 9, "learning_rate": 10.0, "weight_decay": 1.0, "batch_size": 4}
    with pytest.raises(NonFiniteLossError):
        compare(case.learner, *case.sets, case.candidates[:1], retrain=bad)


def test_what_cannot_be_compared_is_refused(case: Any) -> None:
    retain, forget, test = case.sets
    one = case.candidates[:1]
    with pytest.raises(ValueError, match="candidates, each once"):
        compare(case.learner, *case.sets, [])
    with pytest.raises(ValueError, match="candidates, each once"):
        compare(case.learner, *case.sets, one * 2)
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="seeds, each once"):
            compare(case.learner, *case.sets, one, seeds=seeds)
    with pytest.raises(ValueError, match="forget set is empty"):
        compare(case.learner, retain, forget.subset([]), test, one)
    with pytest.raises(ValueError, match="two unlearn samples"):
        compare(case.learner, retain, forget.subset([0]), test, one, relearn=True)
    wrong = [one[0].model_copy(update={"params": {"epochs": 0}})]
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        compare(case.learner, *case.sets, wrong)


def test_keep_best_returns_the_epoch_with_the_smallest_proxy_gap(compared: Any) -> None:
    """The row of three epochs with keep_best is that of the best of one, two and three epochs."""
    case = compared.case
    shared = {"learning_rate": 0.05, "batch_size": 8}
    (three,) = expand([{"method": "fine_tune", "params": {**shared, "epochs": 3}}], "simclr")
    kept = compare(case.learner, *case.sets, [three], seeds=[0], keep_best=True)
    shorter = [
        candidate
        for epochs in (1, 2, 3)
        for candidate in expand(
            [{"method": "fine_tune", "params": {**shared, "epochs": epochs}}], "simclr"
        )
    ]
    plain = compare(case.learner, *case.sets, shorter, seeds=[0])
    gaps = [row.proxy_gap.value for row in plain.rows if row.kind == "candidate"]
    row = row_of(kept, "fine_tune")
    assert row.best_epochs == [1 + gaps.index(min(gaps))]
    assert row.proxy_gap.value == min(gaps)
    assert kept.settings.keep_best
    assert any("chosen by the test samples" in note for note in kept.notes)
    assert not any("chosen by the test samples" in note for note in plain.notes)
