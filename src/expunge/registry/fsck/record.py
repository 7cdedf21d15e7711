"""Is the whole log what was sealed? Every row, leaf, link, subtree, head and signature, a part at a time."""

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from expunge.registry import signing_keys
from expunge.registry.record import checking
from expunge.registry.record.checking import Broken, Checked

__all__ = ["Broken", "check"]


def check(engine: Engine) -> Checked:
    """All parts, up to the first that is broken. Rows that are appended meanwhile are looked at as well."""
    start, unsigned = 0, 0
    frozen = engine.execution_options(isolation_level="REPEATABLE READ")
    while True:
        # A picture for each part: one for all of them would keep the database from tidying up.
        with Session(frozen) as session:
            found = checking.check(session, signing_keys.public_keys(session), start=start)
        unsigned += found.unsigned_heads
        start = found.end
        if found.broken is not None or found.end == found.size:
            return Checked(found.size, 0, found.end, unsigned, found.broken)
