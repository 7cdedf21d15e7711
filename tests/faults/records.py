"""Everything that PostgreSQL and the object store say, as plain rows: what the promise is judged by.

Reads tables as they are, without the service's own queries; never writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text

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
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:

        def rows(query: str) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(text(query)).mappings()]

        tables = {name: rows(f'SELECT * FROM "{name}"') for name in Table.metadata.tables}  # noqa: S608 - our tables
        tables["log"] = sorted(tables["log"], key=lambda row: row["seq"])
        tables["clock"] = rows("SELECT now() AS now")
    return Records(tables, objects=frozenset(objects), accepted=accepted)
