from typing import Any

import optuna
import pytest

from expunge.unlearning.candidates import Range
from expunge.unlearning.comparison import ComparisonProgress, search

QUICK = {"epochs": 1, "batch_size": 8}


def test_a_search_tries_settings_within_their_ranges_and_is_repeatable(
    case: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    ranges = {
        "beta": Range(low=0, high=20),
        "learning_rate": Range(low=1e-3, high=0.1, log=True),
    }
    heard: list[ComparisonProgress] = []

    def run(seed: int) -> list[dict[str, Any]]:
        result = search(
            case.learner,
            *case.sets,
            "alignment_calibration",
            ranges=ranges,
            trials=3,
            objective="proxy",
            params=QUICK,
            seed=seed,
            on_progress=heard.append,
        )
        rows = result.rows[1:]
        assert len(rows) == 3
        assert result.recommended is not None
        assert result.settings.search["ranges"]["beta"] == {"low": 0, "high": 20, "log": False}
        return [row.params for row in rows]

    verbosity = optuna.logging.get_verbosity()
    first = run(0)
    assert first == run(0) != run(1)
    for params in first:
        assert 0 <= params["beta"] <= 20
        assert 1e-3 <= params["learning_rate"] <= 0.1
        assert (params["epochs"], params["alpha"]) == (1, 1.0)
    assert (heard[-1].done, heard[-1].total) == (12 // 3, 4)
    assert optuna.logging.get_verbosity() == verbosity
    assert capfd.readouterr().err == ""


def test_whole_parameters_stay_whole_and_are_not_run_twice(case: Any) -> None:
    heard: list[ComparisonProgress] = []
    result = search(
        case.learner,
        *case.sets,
        "fine_tune",
        ranges={"epochs": Range(low=1, high=2)},
        trials=5,
        objective="proxy",
        params={"batch_size": 8},
        on_progress=heard.append,
    )
    epochs = [row.params["epochs"] for row in result.rows[1:]]
    assert set(epochs) <= {1, 2}
    assert len(epochs) == len(set(epochs))
    assert heard[-1].done == heard[-1].total == 6


def test_a_search_against_retrain_is_decided_by_retrain(case: Any) -> None:
    result = search(
        case.learner,
        *case.sets,
        "fine_tune",
        trials=2,
        objective="retrain",
        params=QUICK,
        retrain=case.retrain,
    )
    assert result.recommended is not None
    assert result.recommended.criterion == "retrain"
    assert all(0.003 <= row.params["learning_rate"] <= 0.03 for row in result.rows[2:])


def test_settings_that_fail_do_not_end_a_search(case: Any) -> None:
    result = search(
        case.learner,
        *case.sets,
        "fine_tune",
        ranges={"learning_rate": Range(low=9, high=10)},
        trials=2,
        objective="proxy",
        params={"epochs": 4, "batch_size": 4, "weight_decay": 1.0},
    )
    assert [row.failure is None for row in result.rows] == [True, False, False]
    assert result.recommended is None


def test_what_cannot_be_searched_is_refused(case: Any) -> None:
    given = {"trials": 1, "objective": "proxy"}
    with pytest.raises(ValueError, match="at least one trial"):
        search(case.learner, *case.sets, "fine_tune", **{**given, "trials": 0})
    with pytest.raises(ValueError, match="needs Retrain's parameters"):
        search(case.learner, *case.sets, "fine_tune", **{**given, "objective": "retrain"})
    with pytest.raises(ValueError, match="compared with"):
        search(case.learner, *case.sets, "retrain", **given)
