"""The promise, checked by reading nothing but the database and the store.

Accepted means durable; a job has at most one live executor; a result is recorded once; every request
ends in a final state with its reason; nothing is silently retried for ever.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from sqlalchemy import Engine
from tests.faults import results
from tests.faults.records import Records, read

from expunge.registry import orphans
from expunge.registry.database import sessions
from expunge.registry.fsck import lives
from expunge.registry.fsck.rules import RULES
from expunge.registry.objects import ObjectStore

Check = Callable[[Records], Iterable[str]]
Accepted = Mapping[tuple[str, str], str]

ALWAYS: tuple[Check, ...] = (
    *RULES,
    results.what_was_accepted_is_there,
    results.a_key_makes_one_request,
)
"""What holds at every moment, in the middle of anything."""
AT_REST: tuple[Check, ...] = (
    *ALWAYS,
    results.nothing_is_left_undone,
    results.objects_are_named,
    results.no_note_is_left,
)
"""What holds as well once nothing runs and the store was swept."""


def violations(records: Records, checks: Iterable[Check]) -> dict[str, list[str]]:
    """What each check found, by its name; an empty list is a check that was passed."""
    return {_name(check): list(check(records)) for check in checks}


def _name(check: Check) -> str:
    return check.func.__name__ if isinstance(check, partial) else check.__name__


def at_any_moment(
    engine: Engine, accepted: Accepted, *, lease_tolerance_seconds: float
) -> dict[str, list[str]]:
    """Check while the service works."""
    leases = partial(lives.live_jobs_have_live_leases, tolerance_seconds=lease_tolerance_seconds)
    return violations(read(engine, accepted=accepted), [*ALWAYS, leases])


def at_rest(engine: Engine, store: ObjectStore, accepted: Accepted) -> dict[str, list[str]]:
    """Sweep, then check everything, objects read to their last byte; nothing may be running.

    Two sweeps: the second shows that the first left nothing to a later one.
    """
    for _ in range(2):
        orphans.sweep(sessions(engine), store, grace_seconds=0)
    found = violations(read(engine, list(store.keys()), accepted), AT_REST)
    broken = orphans.check(sessions(engine), store, deep=True)
    found["every_named_object_is_whole"] = [
        f"{each.named_by} names {each.key}, which is {each.problem}" for each in broken
    ]
    return found


def told(found: Mapping[str, list[str]]) -> Iterator[str]:
    """The violations as lines; none if the promise was kept."""
    for name, words in found.items():
        for each in words:
            yield f"{name.replace('_', ' ')}: {each}"
