from typing import Any

import pytest
from pydantic import ValidationError

from expunge.unlearning.candidates import (
    MAX_CANDIDATES,
    SEARCH_RANGES,
    Candidate,
    CandidateSpec,
    InvalidCandidates,
    Range,
    expand,
    is_whole,
    make_candidate,
    search_ranges,
)
from expunge.unlearning.catalog import METHODS


def refused(entries: list[dict[str, Any]], framework: str = "simclr") -> InvalidCandidates:
    with pytest.raises(InvalidCandidates) as caught:
        expand(entries, framework)
    return caught.value


def test_a_grid_is_every_combination_in_order() -> None:
    entries = [
        {
            "method": "alignment_calibration",
            "params": {"epochs": 3},
            "grid": {"beta": [0, 8.5], "learning_rate": [0.006, 0.02]},
        },
        {"method": "fine_tune"},
    ]
    candidates = expand(entries, "moco")
    settings = [(c.params.get("beta"), c.params["learning_rate"]) for c in candidates]
    assert settings == [(0, 0.006), (0, 0.02), (8.5, 0.006), (8.5, 0.02), (None, 0.01)]
    assert candidates[0].label == "alignment_calibration (epochs=3, beta=0, learning_rate=0.006)"
    assert candidates[-1].label == "fine_tune"
    assert candidates == expand([CandidateSpec(**entry) for entry in entries], "moco")


def test_params_are_complete_and_by_framework() -> None:
    for framework in ("simclr", "clip"):
        (candidate,) = expand([{"method": "fine_tune"}], framework)
        assert candidate.params == METHODS["fine_tune"].defaults_for(framework)
    assert isinstance(candidate, Candidate)


@pytest.mark.parametrize(
    ("entry", "location", "message"),
    [
        ({"method": "magic"}, ("method",), "unknown method 'magic'"),
        ({"method": "retrain"}, ("method",), "compared with"),
        ({"method": "fine_tune", "params": {"zip": 1}}, ("params", "zip"), "not permitted"),
        (
            {"method": "fine_tune", "params": {"epochs": "3"}},
            ("params", "epochs"),
            "valid integer",
        ),
        (
            {"method": "fine_tune", "grid": {"learning_rate": [0.1, -1.0]}},
            ("grid", "learning_rate", 1),
            "greater than 0",
        ),
        ({"method": "fine_tune", "grid": {"epochs": []}}, ("grid", "epochs"), "at least one"),
        (
            {"method": "fine_tune", "params": {"epochs": 1}, "grid": {"epochs": [2]}},
            ("grid", "epochs"),
            "and in the grid",
        ),
        (
            {
                "method": "alignment_calibration",
                "params": {"protocol": "released", "alpha": 2.0},
            },
            ("params",),
            "alpha = gamma",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    entry: dict[str, Any], location: tuple[str | int, ...], message: str
) -> None:
    error = refused([{"method": "neg_grad"}, entry])
    assert error.problems[0].location == (1, *location)
    assert message in error.problems[0].message
    assert message in str(error)


def test_a_method_not_for_the_framework_is_refused() -> None:
    error = refused([{"method": "alignment_calibration"}], "byol")
    assert error.problems[0].location == (0, "method")
    assert "not for framework 'byol'" in str(error)


def test_settings_that_are_the_same_are_refused_however_written() -> None:
    error = refused([{"method": "fine_tune"}, {"method": "fine_tune", "params": {"epochs": 10}}])
    assert "same setting as 'fine_tune'" in str(error)
    refused([{"method": "fine_tune", "grid": {"learning_rate": [0.5, 0.5]}}])


def test_no_entry_and_too_many_settings_are_refused() -> None:
    assert "at least one" in str(refused([]))
    rates = [0.001 * (1 + i) for i in range(MAX_CANDIDATES)]
    grid = {"method": "fine_tune", "grid": {"learning_rate": rates}}
    assert len(expand([grid], "simclr")) == MAX_CANDIDATES
    error = refused([grid, {"method": "neg_grad"}])
    assert f"{MAX_CANDIDATES + 1} settings" in str(error)
    huge = {"method": "fine_tune", "grid": {n: list(range(999)) for n in ("epochs", "a", "b")}}
    assert "997002999 settings" in str(refused([huge]))


def test_an_entry_of_another_shape_is_a_validation_error() -> None:
    for entry in ({}, {"method": "fine_tune", "grids": {}}, {"method": "x", "params": 3}):
        with pytest.raises(ValidationError):
            expand([entry], "simclr")


def test_labels_tell_close_values_apart() -> None:
    labels = {make_candidate("fine_tune", "moco", {"learning_rate": r}).label for r in NEAR}
    assert len(labels) == len(NEAR)


NEAR = (0.01, 0.0100000001, 0.0100000002)


@pytest.mark.parametrize(("method", "framework"), sorted(SEARCH_RANGES))
def test_the_published_ranges_are_within_bounds(method: str, framework: str) -> None:
    assert search_ranges(method, framework) == dict(SEARCH_RANGES[method, framework])


def test_published_ranges_are_the_papers() -> None:
    rate = SEARCH_RANGES["gradient_ascent", "simclr"]["learning_rate"]
    assert (rate.low, rate.high, rate.log) == (1e-6, 1e-4, True)
    assert SEARCH_RANGES["alignment_calibration", "moco"]["beta"].high == 20
    assert SEARCH_RANGES["l1_sparsity", "clip"]["l1_weight"].low == 1e-9
    assert ("alignment_calibration", "byol") not in SEARCH_RANGES


def test_fixed_parameters_are_not_searched() -> None:
    chosen = search_ranges("alignment_calibration", "simclr", fixed={"beta": 4})
    assert list(chosen) == ["learning_rate"]


@pytest.mark.parametrize(
    ("ranges", "fixed", "location", "message"),
    [
        ({"beta": Range(low=0, high=200)}, {}, ("ranges", "beta"), "200: .*less than or equal"),
        ({"zip": Range(low=0, high=1)}, {}, ("ranges", "zip"), "not permitted"),
        ({"protocol": Range(low=0, high=1)}, {}, ("ranges", "protocol"), "corrected"),
        ({"beta": Range(low=0, high=1)}, {"beta": 1}, ("ranges", "beta"), "and as a range"),
        (None, {"gamma": -1}, ("params", "gamma"), "greater than"),
        (None, {"beta": 1, "learning_rate": 0.1}, ("ranges",), "give ranges"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(
    ranges: dict[str, Range] | None,
    fixed: dict[str, Any],
    location: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(InvalidCandidates, match=message) as caught:
        search_ranges("alignment_calibration", "simclr", ranges, fixed=fixed)
    assert caught.value.problems[0].location == location


def test_a_range_is_ordered_and_logarithmic_above_zero_only() -> None:
    for bad in ({"low": 1, "high": 1}, {"low": 0, "high": 1, "log": True}):
        with pytest.raises(ValidationError):
            Range(**bad)


def test_whole_numbers_are_known() -> None:
    assert is_whole("fine_tune", "epochs")
    assert not is_whole("fine_tune", "learning_rate")
    assert not is_whole("fine_tune", "zip")
