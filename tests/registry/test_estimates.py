"""Estimates against a slow, obvious twin, and what moves them. The scenes over HTTP are in tests/api."""

import random

import pytest

from expunge.registry.estimates import Done, Run, Span, predict
from expunge.unlearning.catalog import METHODS
from expunge.unlearning.methods import make_method

COSTS = {"alignment_calibration": 1.2, "gradient_penalty": 12.0}


def images(run: Run) -> float:
    """Images a run shows, epoch by epoch, each counted with its cost."""
    total = 0.0
    for _ in range(run.epochs):
        if run.method == "gradient_ascent":
            shown = run.unlearn
        elif run.method in {
            "alignment_calibration",
            "contrastive_unlearning",
            "gradient_penalty",
            "neg_grad",
        }:
            shown = run.retain + run.unlearn
        else:
            shown = run.retain
        total += shown * COSTS.get(str(run.method), 1.0)
    return total


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def twin(run: Run, done: list[Done], *, own: bool) -> Span:
    """The estimate as its docstring says it, one step after the other."""
    speeds = [images(each.run) / each.seconds for each in done]
    speed = middle(speeds)
    off: dict[str, list[float]] = {"same": [], "all": []}
    for each in done:
        predicted = images(each.run) / speed
        off["all"].append(each.seconds / predicted)
        if own and each.run.method == run.method:
            off["same"].append(each.seconds / predicted)
    correction = middle(off["same"]) if off["same"] else 1.0
    expected = images(run) / speed * correction
    least = 1.25 if off["same"] else 1.5 if own else 2.0
    differed = sorted(each / correction for each in off["same"] or off["all"])

    def reached_by(share: float) -> float:
        """The smallest value that at least this share of all is not above."""
        for value in differed:
            if sum(each <= value for each in differed) >= share * len(differed):
                return value
        raise AssertionError

    low = expected * min(1 / least, reached_by(0.1))
    return Span(expected, low, expected * max(least, reached_by(0.9)))


def drawn(rng: random.Random) -> Run:
    method = rng.choice([None, *METHODS])
    return Run(method, rng.randint(1, 20), rng.randint(1, 5000), rng.randint(1, 500))


@pytest.mark.parametrize("jobs", [1, 2, 3, 20])
@pytest.mark.parametrize("own", [True, False])
def test_it_is_what_the_twin_says(jobs: int, own: bool) -> None:
    rng = random.Random(f"{jobs}-{own}")  # noqa: S311 - draws examples
    done = [Done(drawn(rng), rng.uniform(0.1, 1e4)) for _ in range(jobs)]
    for run in [drawn(rng) for _ in range(20)]:
        found, expected = predict(run, done, own=own), twin(run, done, own=own)
        assert found is not None
        for name in ("expected", "low", "high"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
        assert found.low < found.expected < found.high


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_images_counted_are_those_that_the_method_shows(method: str) -> None:
    """Retain sets of 7 and unlearn sets of 2, over 3 epochs."""
    made = make_method(method, METHODS[method].params())
    sets = 7 * made.uses_retain_set + 2 * made.uses_unlearn_set
    assert Run(method, 3, 7, 2).work == pytest.approx(3 * sets * COSTS.get(method, 1.0))


def test_without_any_job_nothing_is_said() -> None:
    assert predict(Run("fine_tune", 10, 100, 10), [], own=True) is None


def test_without_anything_to_show_nothing_is_said() -> None:
    done = [Done(Run(None, 10, 100, 0), 5.0)]
    assert predict(Run("fine_tune", 10, 0, 10), done, own=True) is None


def test_pre_training_alone_says_how_long_fine_tuning_takes() -> None:
    done = [Done(Run(None, 100, 1000, 0), 50.0)]
    found = predict(Run("fine_tune", 10, 900, 100), done, own=True)
    assert found == Span(expected=4.5, low=4.5 / 1.5, high=4.5 * 1.5)


def test_a_job_that_took_twice_as_long_moves_the_estimate_of_its_method() -> None:
    pretrained = Done(Run(None, 100, 1000, 0), 50.0)
    run = Run("fine_tune", 10, 900, 100)
    as_predicted = [pretrained, Done(run, 4.5)]
    twice = [pretrained, Done(run, 9.0)]
    seconds = [predict(run, done, own=True) for done in (as_predicted, twice)]
    assert [each.expected for each in seconds if each] == pytest.approx([4.5, 9.0])
    other = predict(Run("l1_sparsity", 10, 900, 100), as_predicted, own=True)
    assert other is not None
    assert other.expected == pytest.approx(4.5)


def test_what_jobs_differed_by_widens_the_span() -> None:
    run = Run("fine_tune", 10, 900, 100)
    alike = predict(run, [Done(run, seconds) for seconds in (9.0, 10.0, 11.0)], own=True)
    apart = predict(run, [Done(run, seconds) for seconds in (5.0, 10.0, 40.0)], own=True)
    assert (alike, apart) == (Span(10.0, 8.0, 12.5), Span(10.0, 5.0, 40.0))
