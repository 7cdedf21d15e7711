"""A short seeded schedule of faults, drawn from all kinds, against a service at work; `make soak` has the long one."""

from pathlib import Path

from tests.faults import drill, schedule
from tests.faults.injuries import Injurer
from tests.faults.rig import Rig
from tests.faults.users import Cast

SEED = 14
KILLS = 5
PAUSE = (0.3, 1.5)
JOB_SECONDS = 1.0


def test_a_short_schedule_of_all_faults_keeps_the_promise(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    faults = schedule.plan(SEED, Injurer(rig).kinds(), kills=KILLS, pause=PAUSE)
    outcome = drill.run(rig, cast, weights, SEED, faults, lanes=2, seconds=JOB_SECONDS)
    assert sum(injury.hit for injury in outcome.injuries) >= KILLS
    assert outcome.done["request completed"] >= 2
