"""Everything that PostgreSQL and the object store say, as plain rows: what the promise is judged by.

Reads tables as they are, without the service's own queries; never writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import Engine, text

from expunge.registry.tables import Table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """Rows by table, the log in the order of its numbers, and the store's keys."""

    tables: Mapping[str, Sequence[Row]]
    objects: frozenset[str] = frozenset()
    accepted: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What users were told: party and idempotency key, and the id that they were answered."""

    def __getitem__(self, table: str) -> Sequence[Row]:
        return self.tables.get(table, ())

    def one(self, table: str, row_id: str | None) -> Row | None:
        """The row with this id."""
        return next((row for row in self[table] if row["id"] == row_id), None)

    def where(self, table: str, **values: Any) -> list[Row]:
        """Rows with these values."""
        return [row for row in self[table] if all(row[k] == v for k, v in values.items())]

    def history(self, subject_id: str) -> list[Row]:
        """The log rows about one thing, oldest first."""
        return self._log_by_subject.get(subject_id, [])

    @cached_property
    def _log_by_subject(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self["log"]:
            found.setdefault(row["subject_id"], []).append(row)
        return found

    def datasets_of(self, request_id: str) -> set[str]:
        """What a request asks to forget."""
        return {row["dataset_id"] for row in self.where("request_datasets", request_id=request_id)}

    def forgotten(self, checkpoint_id: str) -> set[str]:
        """Data sets that a checkpoint has forgotten."""
        found = self.where("checkpoint_datasets", checkpoint_id=checkpoint_id, forgotten=True)
        return {row["dataset_id"] for row in found}

    def trained_on(self, checkpoint_id: str) -> set[str]:
        """Data sets that a checkpoint, or one before it, was trained on."""
        found = self.where("checkpoint_datasets", checkpoint_id=checkpoint_id)
        return {row["dataset_id"] for row in found}

    def held(self, checkpoint_id: str) -> set[str]:
        """Data sets that a checkpoint was trained on and has not forgotten."""
        return self.trained_on(checkpoint_id) - self.forgotten(checkpoint_id)

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

        tables = {
            name: rows(f'SELECT * FROM "{name}"{" ORDER BY seq" if name == "log" else ""}')  # noqa: S608
            for name in Table.metadata.tables
        }
        tables["clock"] = rows("SELECT now() AS now")
    return Records(tables, frozenset(objects), accepted)
