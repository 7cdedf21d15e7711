"""Rows of one consistent picture: what the rules are checked against. Knows rows, not where they are from."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """Rows by table, the log in the order of its numbers; `clock` has the database's own time.

    What a rule goes through (`[table]`) is in `tables`; what it looks up may be in `beside` as well. So
    rules can be checked on a part of the rows that has, beside it, whatever they look up.
    """

    tables: Mapping[str, Sequence[Row]]
    beside: Mapping[str, Sequence[Row]] = field(default_factory=dict, kw_only=True)
    _indexes: dict[tuple[str, str], dict[Any, list[Row]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __getitem__(self, table: str) -> Sequence[Row]:
        return self.tables.get(table, ())

    def one(self, table: str, row_id: str | None) -> Row | None:
        """The row with this id."""
        return next(iter(self._by(table, "id").get(row_id, ())), None)

    def where(self, table: str, **values: Any) -> list[Row]:
        """Rows with these values."""
        column = next(iter(values))
        rows = self._by(table, column).get(values[column], ())
        return [row for row in rows if all(row[k] == v for k, v in values.items())]

    def history(self, subject_id: str) -> list[Row]:
        """The log rows about one thing, oldest first."""
        return self._by("log", "subject_id").get(subject_id, [])

    def _by(self, table: str, column: str) -> dict[Any, list[Row]]:
        """The table's rows by a column: what is asked for each row must not read all of them."""
        if (table, column) not in self._indexes:
            found: dict[Any, list[Row]] = defaultdict(list)
            for row in self._all(table):
                found[row[column]].append(row)
            self._indexes[table, column] = dict(found)
        return self._indexes[table, column]

    def _all(self, table: str) -> Iterator[Row]:
        return chain(self[table], self.beside.get(table, ()))

    @cached_property
    def _forgotten(self) -> Mapping[str, Mapping[str, bool]]:
        found: dict[str, dict[str, bool]] = defaultdict(dict)
        for row in self._all("checkpoint_datasets"):
            found[row["checkpoint_id"]][row["dataset_id"]] = row["forgotten"]
        return found

    def datasets_of(self, request_id: str) -> set[str]:
        """What a request asks to forget."""
        return {row["dataset_id"] for row in self.where("request_datasets", request_id=request_id)}

    def forgotten(self, checkpoint_id: str) -> set[str]:
        """Data sets that a checkpoint has forgotten."""
        return {each for each, gone in self._forgotten.get(checkpoint_id, {}).items() if gone}

    def trained_on(self, checkpoint_id: str) -> set[str]:
        """Data sets that a checkpoint, or one before it, was trained on."""
        return set(self._forgotten.get(checkpoint_id, {}))

    def held(self, checkpoint_id: str) -> set[str]:
        """Data sets that a checkpoint was trained on and has not forgotten."""
        return self.trained_on(checkpoint_id) - self.forgotten(checkpoint_id)
