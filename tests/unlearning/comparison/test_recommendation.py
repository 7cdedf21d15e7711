from collections.abc import Callable

import pytest

from expunge.unlearning.comparison.recommendation import recommend
from expunge.unlearning.comparison.records import Gap, Row

MakeRow = Callable[..., Row]


def sure(one: Row, other: Row) -> float:
    del one, other
    return 0.5


def test_the_smallest_gap_to_retrain_wins_where_it_is_surely_the_smallest(
    make_row: MakeRow,
) -> None:
    rows = [make_row("a", 1.0, 5.0), make_row("b", 9.0, 2.0, minutes=9), make_row("c", 0.0, 3.0)]
    found = recommend(rows, "retrain", sure)
    assert found is not None
    assert (found.label, found.runner_up, found.value) == ("b", "c", 2.0)
    assert not found.within_uncertainty
    assert found.why.startswith("b has the smallest average gap to Retrain, 2.00 points")
    assert "the runner-up is c with 3.00, a difference beyond its uncertainty (±0.50)" in found.why


def test_without_retrain_the_proxy_decides(make_row: MakeRow) -> None:
    rows = [make_row("a", 4.0, None), make_row("b", 2.0, None)]
    found = recommend(rows, "proxy", sure)
    assert found is not None
    assert (found.label, found.criterion) == ("b", "proxy")
    assert "Retrain was not run" in found.why


def test_among_ties_the_cheaper_wins_and_the_sentence_says_so(make_row: MakeRow) -> None:
    rows = [
        make_row("slow", 0, 2.0, minutes=4.0),
        make_row("quick", 0, 2.4, minutes=1.0),
        make_row("quicker but worse", 0, 2.6, minutes=0.1),
    ]
    found = recommend(rows, "retrain", sure)
    assert found is not None
    assert (found.label, found.runner_up, found.within_uncertainty) == ("quick", "slow", True)
    assert "cheapest of 2 settings with no telling" in found.why
    assert "it takes 1 minutes and has 2.40 points (one seed), against 4 minutes and 2.00" in (
        found.why
    )
    assert "within its uncertainty (±0.50)" in found.why


def test_run_times_that_hardly_differ_decide_nothing(make_row: MakeRow) -> None:
    rows = [make_row("a", 0, 2.4, minutes=1.0), make_row("b", 0, 2.0, minutes=1.2)]
    found = recommend(rows, "retrain", sure)
    assert found is not None
    assert (found.label, found.within_uncertainty) == ("b", True)
    assert "within its uncertainty (±0.50), and it is not clearly cheaper" in found.why


def test_without_an_idea_of_the_uncertainty_only_equal_gaps_tie(make_row: MakeRow) -> None:
    rows = [make_row("a", 0, 2.0, minutes=9), make_row("b", 0, 2.01, minutes=1)]
    found = recommend(rows, "retrain", lambda _one, _other: None)
    assert found is not None
    assert found.label == "a"
    assert "too few samples" in found.why
    rows[1] = make_row("b", 0, 2.0, minutes=1)
    found = recommend(rows, "retrain", lambda _one, _other: None)
    assert found is not None
    assert found.label == "b"


def test_of_equal_gaps_the_cheaper_is_chosen_with_the_uncertainty_of_their_difference(
    make_row: MakeRow,
) -> None:
    rows = [make_row("a", 0, 2.0, minutes=9), make_row("b", 0, 2.0, minutes=1)]
    found = recommend(rows, "retrain", sure)
    assert found is not None
    assert (found.label, found.runner_up, found.within_uncertainty) == ("b", "a", True)
    assert "the runner-up is a with 2.00, a difference within its uncertainty (±0.50)" in found.why


def test_a_failed_row_is_never_recommended(make_row: MakeRow) -> None:
    rows = [make_row("bad", 0, 0.0, failure="seed 1: no"), make_row("good", 0, 9.0)]
    found = recommend(rows, "retrain", sure)
    assert found is not None
    assert (found.label, found.runner_up) == ("good", None)
    assert "only setting that succeeded" in found.why
    assert recommend(rows[:1], "retrain", sure) is None


@pytest.mark.parametrize(("before", "mentioned"), [(1.9, True), (2.1, False)])
def test_a_checkpoint_that_needs_nothing_done_is_mentioned(
    make_row: MakeRow, before: float, mentioned: bool
) -> None:
    rows = [
        make_row("Before", 0, before, kind="before", minutes=0),
        make_row("Retrain", 0, 0, kind="retrain"),
        make_row("a", 0, 2.0),
    ]
    found = recommend(rows, "retrain", sure)
    assert found is not None
    assert found.label == "a"
    assert ("leaving the checkpoint as it is" in found.why) is mentioned


def test_of_ties_one_that_did_not_forget_is_not_chosen_for_being_cheap(make_row: MakeRow) -> None:
    rows = [
        make_row("idle", 0, 1.0, minutes=0.1, forgetting_score_gap=Gap(0.018, 0.004)),
        make_row("forgot", 0, 1.2, minutes=2.0, forgetting_score_gap=Gap(0.002, 0.004)),
        make_row("dear", 0, 1.1, minutes=9.0, forgetting_score_gap=Gap(0.003, 0.004)),
        make_row("apart", 0, 9.0, minutes=0.2, forgetting_score_gap=Gap(0.0, 0.004)),
    ]
    found = recommend(rows, "retrain", lambda *_: 0.5)
    assert found is not None
    assert found.label == "forgot"
    assert found.why.startswith(
        "forgot is the cheapest of the 2 that come nearest to Retrain's forgetting score, of 3"
    )
    assert recommend(rows, "retrain", lambda *_: 0.05).label == "idle", "no tie, no choice"
