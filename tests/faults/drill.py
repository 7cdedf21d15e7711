"""A whole schedule of faults against a service at work, the promise checked meanwhile and at the end."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.injuries import Injurer, Injury
from tests.faults.load import Load
from tests.faults.recovery import Recoveries
from tests.faults.reference import digest_recorded, digest_undisturbed
from tests.faults.rig import Rig
from tests.faults.schedule import Fault, Kind, to_json, words
from tests.faults.users import Cast

CHECK_EVERY = 10
"""Faults between two checks in the middle of things."""
REST_SECONDS = 120.0
COMPARABLE = """
    SELECT id, attempt FROM jobs
    WHERE state = 'succeeded' AND kind IN ('pretrain', 'unlearn') AND (
        kind = 'pretrain' OR NOT EXISTS (
            SELECT FROM requests
            WHERE requests.model_id = jobs.model_id AND requests.job_id IS DISTINCT FROM jobs.id
        )
    )
    ORDER BY attempt DESC, id LIMIT :count
"""


@dataclass
class Outcome:
    """What was done, and what became of it."""

    injuries: list[Injury] = field(default_factory=list)
    recoveries: list[tuple[Kind, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    """What users asked for and has ended, by kind and state."""
    checks: int = 0
    """How often the promise was checked."""


def run(
    rig: Rig,
    cast: Cast,
    weights: Path,
    seed: int,
    faults: Sequence[Fault],
    *,
    lanes: int,
    seconds: float,
    on_fault: Callable[[int, Injury], None] = lambda number, injury: None,
) -> Outcome:
    """Carry out the schedule under load and wait until everything has ended.

    Args:
        lanes, seconds: see Load.
        on_fault: told after each fault, with its number from 1.

    Raises:
        AssertionError: the promise was broken, or something did not come to an end; with the schedule.
    """
    outcome = Outcome()
    injurer = Injurer(rig)
    try:
        with Recoveries(rig) as recoveries:
            with Load(rig, cast, weights, lanes=lanes, seconds=seconds, seed=seed) as load:
                try:
                    for number, fault in enumerate(faults, 1):
                        injurer.wait(fault.pause)
                        load.check()
                        injury = injurer.do(fault)
                        outcome.injuries.append(injury)
                        if injury.hit:
                            recoveries.measure(injury)
                        on_fault(number, injury)
                        if number % CHECK_EVERY == 0:
                            rig.check()
                            outcome.checks += 1
                finally:
                    injurer.end_all()
            rig.until_rest(REST_SECONDS)
        rig.check_at_rest()
    except BaseException as error:
        error.add_note(f"The schedule, to be replayed:\n{to_json(seed, faults)}")
        error.add_note("\n".join(words(faults)))
        raise
    outcome.checks += 1
    outcome.recoveries = recoveries.seconds
    outcome.done = load.done
    return outcome


def compare_weights(rig: Rig, count: int) -> dict[str, int]:
    """Train the jobs with the most attempts again without disturbance; their ids and attempts.

    Only those whose model no other request was made to: while one waits, its data is not trained on
    either, and afterwards nothing tells which ones waited when.

    Raises:
        AssertionError: one of them gave other weights.
    """
    found = rig.rows(COMPARABLE, count=count)
    for job in found:
        with TemporaryDirectory() as folder:
            expected = digest_undisturbed(rig, job["id"], Path(folder))
        if digest_recorded(rig, job["id"]) != expected:
            raise AssertionError(f"{job['id']} gave other weights after {job['attempt']} attempts")
    return {job["id"]: job["attempt"] for job in found}
