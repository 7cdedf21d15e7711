"""A schedule is data: the same seed gives the same one, and it can be written down and read again."""

from collections import Counter

import pytest
from tests.faults.schedule import KILLS, Kind, from_json, plan, to_json, words


def test_a_seed_gives_one_schedule_and_another_seed_another() -> None:
    schedules = [plan(seed, list(Kind), kills=20, pause=(1, 2)) for seed in (1, 1, 2)]
    assert schedules[0] == schedules[1] != schedules[2]


@pytest.mark.parametrize("kills", [1, 8, 100])
def test_it_has_as_many_kills_as_asked_of_every_kind_in_turn(kills: int) -> None:
    faults = plan(3, list(Kind), kills=kills, pause=(0.5, 4))
    counts = Counter(fault.kind for fault in faults)
    assert sum(counts[kind] for kind in KILLS) == kills
    assert faults[-1].kind in KILLS
    assert max(counts[kind] for kind in KILLS) - min(counts[kind] for kind in KILLS) <= 1
    assert all(0.5 <= fault.pause <= 4 for fault in faults)


def test_a_long_schedule_has_all_other_faults_too() -> None:
    counts = Counter(fault.kind for fault in plan(3, list(Kind), kills=100, pause=(1, 2)))
    others = [counts[kind] for kind in set(Kind) - KILLS]
    assert min(others) > 0
    assert 0.3 < sum(others) / 100 < 0.6


def test_only_the_kinds_that_can_be_had_are_drawn() -> None:
    faults = plan(0, [Kind.KILL_API, Kind.FLUSH_REDIS], kills=5, pause=(0, 0))
    assert {fault.kind for fault in faults} == {Kind.KILL_API, Kind.FLUSH_REDIS}


def test_what_is_written_down_is_read_again() -> None:
    faults = plan(7, list(Kind), kills=12, pause=(1, 2))
    assert from_json(to_json(7, faults)) == (7, faults)
    assert len(list(words(faults))) == len(faults)
