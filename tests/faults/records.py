"""Everything that PostgreSQL and the object store say, as plain rows: what the promise is judged by.

Reads tables as they are, without the service's own queries; never writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine

from expunge.registry import fsck
from expunge.registry.tables import Table


@dataclass(frozen=True)
class Records(fsck.Records):
    """All tables, the store's keys, and what users were told."""

    objects: frozenset[str] = frozenset()
    accepted: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What users were told: party and idempotency key, and the id that they were answered."""

    def text(self, *, without: Sequence[str]) -> str:
        """All rows as one text, to look for something anywhere in them."""
        return json.dumps(
            {name: rows for name, rows in self.tables.items() if name not in without}, default=str
        )


def read(
    engine: Engine,
    objects: Sequence[str] = (),
    accepted: Mapping[tuple[str, str], str] | None = None,
) -> Records:
    """All rows of all tables in one consistent picture, with the database's own time in `clock`."""
    # First: what is accepted while the rows are read may be missing from them.
    accepted = dict(accepted or {})
    names = [name for name in Table.metadata.tables if name != "log"]
    tables = fsck.read(engine, names, events=None)
    return Records(tables, objects=frozenset(objects), accepted=accepted)
