"""Migrations with rows in every table: on the way down and up again nothing is lost that a revision has room for."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import (
    ARRAY,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Engine,
    LargeBinary,
    Table,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import Integer, TypeEngine
from tests.conftest import text_of
from tests.registry.conftest import House
from tests.registry.keeping import Service, running

from expunge.registry.fsck import record
from expunge.registry.migration import configuration, fits, migrate
from expunge.registry.record import sealing
from expunge.registry.tables import Table as Base

EARLY = "0003"
"""Before the log was sealed, and before most of what is there now."""
VALUES: dict[type[TypeEngine[Any]], Any] = {
    JSONB: {},
    ARRAY: [],
    Boolean: False,
    Integer: 1,
    LargeBinary: b"\0",
    DateTime: text("now()"),
}
"""What a column of each type is filled with; others with their own name."""
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def service(house: House, tmp_path: Path) -> Iterator[Service]:
    yield from running(house, tmp_path)


def fill(engine: Engine) -> None:
    """Give every empty table a row, from what its columns are declared to hold."""
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            if connection.execute(select(table).limit(1)).first() is None:
                needed = [column for column in table.columns if _is_needed(column)]
                values = {each.name: _value(connection, table, each) for each in needed}
                connection.execute(insert(table).values(values))


def _is_needed(column: "Column[Any]") -> bool:
    return not (column.nullable or column.server_default is not None or column.identity)


def _value(connection: Any, table: Table, column: "Column[Any]") -> Any:
    for key in column.foreign_keys:
        return connection.scalar(select(key.column).order_by(key.column).limit(1))
    for each in table.constraints:
        # One of the values that a column of states or kinds may have.
        if isinstance(each, CheckConstraint) and str(each.sqltext).startswith(f"{column.name} IN"):
            return re.findall(r"'(\w+)'", str(each.sqltext))[0]
    for kind, value in VALUES.items():
        if isinstance(column.type, kind):
            return value
    return f"{table.name} {column.name}"


def read(engine: Engine, columns: dict[str, list[str]]) -> Rows:
    """The rows of these columns."""
    with engine.connect() as connection:
        return {
            table: sorted(
                (
                    dict(row)
                    for row in connection.execute(
                        text(f"SELECT {', '.join(names)} FROM {table}")  # noqa: S608 - of our tables
                    ).mappings()
                ),
                key=str,
            )
            for table, names in columns.items()
        }


def columns_of(engine: Engine) -> dict[str, list[str]]:
    found = inspect(engine)
    return {
        table: [each["name"] for each in found.get_columns(table)]
        for table in found.get_table_names()
        if table != "alembic_version"
    }


def test_rows_of_every_table_go_down_to_an_early_revision_and_come_up_again(
    service: Service,
) -> None:
    engine = service.engine
    fill(engine)
    newest = columns_of(engine)
    assert not [table for table, rows in read(engine, newest).items() if not rows]
    url = text_of(engine.url)
    everything = read(engine, newest)

    command.downgrade(configuration(url), EARLY)
    early = columns_of(engine)
    down = read(engine, early)
    common = {
        table: [name for name in names if name in newest[table]] for table, names in early.items()
    }
    for table, names in common.items():
        before = [{name: row[name] for name in names} for row in everything[table]]
        assert sorted(before, key=str) == read(engine, {table: names})[table], table

    migrate(url)
    assert fits(engine)
    assert read(engine, common) == {
        table: sorted(({n: row[n] for n in common[table]} for row in down[table]), key=str)
        for table in common
    }


def test_the_log_is_sealed_anew_where_its_seals_did_not_exist(service: Service) -> None:
    url = text_of(service.engine.url)
    command.downgrade(configuration(url), EARLY)
    migrate(url)
    with service.sessions.begin() as session:
        rows = session.scalar(text("SELECT count(*) FROM log"))
        assert sealing.seal(session, None) == rows
    found = record.check(service.engine)
    assert (found.broken, found.size) == (None, rows)
