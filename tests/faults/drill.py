"""A whole schedule of faults against a service at work, the promise checked meanwhile and at the end."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
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

RETRIED_FAULTS = 10
CHECK_EVERY = 10
"""Faults between two checks in the middle of things."""
REST_SECONDS = 120.0
COMPARABLE = """
    SELECT id, attempt FROM jobs
    WHERE state = 'succeeded' AND kind IN ('pretrain', 'unlearn') AND (
        kind = 'pretrain' OR NOT EXISTS (
            SELECT FROM requests
            WHERE requests.model_id = jobs.model_id AND requests.job_id IS DISTINCT FROM jobs.id
                AND requests.created_at < jobs.finished_at
                AND coalesce(requests.finished_at, 'infinity') > jobs.started_at
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
    try:
        with Recoveries(rig) as recoveries:
            with Load(rig, cast, weights, lanes=lanes, seconds=seconds, seed=seed) as load:
                injurer = Injurer(rig)
                try:
                    for number, injury in enumerate(_injuries(injurer, faults), 1):
                        outcome.injuries.append(injury)
                        if injury.hit:
                            recoveries.measure(injury)
                        on_fault(number, injury)
                        load.check()
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


def _injuries(injurer: Injurer, faults: Sequence[Fault]) -> Iterator[Injury]:
    """Carry out the faults; what finds nothing to hit comes again at the end, RETRIED_FAULTS times in all."""
    coming = deque(faults)
    for _ in range(len(faults) + RETRIED_FAULTS):
        if not coming:
            return
        fault = coming.popleft()
        injurer.wait(fault.pause)
        injury = injurer.do(fault)
        if not injury.hit:
            coming.append(fault)
        yield injury


def compare_weights(rig: Rig, count: int) -> dict[str, int]:
    """Train the jobs with the most attempts again without disturbance; their ids and attempts.

    Only those beside which no other request to their model waited: while one waits, its data is not
    trained on either.

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
