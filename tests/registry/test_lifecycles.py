"""The rules of states: every state is reachable, ends are ends, and nothing else is allowed."""

from collections.abc import Mapping
from enum import StrEnum

import pytest

from expunge.registry import lifecycles as rules

LIVES: list[tuple[type[StrEnum], Mapping[str, frozenset[str]], str, set[str]]] = [
    (rules.DatasetState, rules.DATASET, "open", {"deleted"}),
    (rules.CheckpointState, rules.CHECKPOINT, "checking", {"destroyed"}),
    (
        rules.RequestState,
        rules.REQUEST,
        "received",
        {"completed", "failed", "cancelled", "rejected"},
    ),
    (rules.JobState, rules.JOB, "queued", {"succeeded", "failed", "cancelled"}),
]


@pytest.mark.parametrize(("states", "life", "first", "final"), LIVES)
def test_every_state_can_be_reached_and_has_its_followers_named(
    states: type[StrEnum], life: Mapping[str, frozenset[str]], first: str, final: set[str]
) -> None:
    reached, waiting = {first}, [first]
    while waiting:
        new = life[waiting.pop()] - reached
        reached |= new
        waiting += new
    assert reached == set(states) == set(life)
    assert {state for state in life if rules.is_final(life, state)} == final


@pytest.mark.parametrize(("states", "life", "first", "final"), LIVES)
def test_an_end_is_reached_from_every_other_state(
    states: type[StrEnum], life: Mapping[str, frozenset[str]], first: str, final: set[str]
) -> None:
    assert first in {state.value for state in states}
    for state in set(life) - final:
        reached, waiting = set(), [state]
        while waiting:
            new = life[waiting.pop()] - reached
            reached |= new
            waiting += new
        assert reached & final, state


def test_origins_are_the_states_that_lead_there() -> None:
    assert rules.origins(rules.JOB, "evaluating") == ["running"]
    assert rules.origins(rules.JOB, "running") == ["queued"]
    assert rules.origins(rules.DATASET, "open") == ["invalid", "sealing"]
    assert rules.origins(rules.REQUEST, "received") == []
    assert rules.origins(rules.CHECKPOINT, "destroying") == ["invalid", "ready"]
