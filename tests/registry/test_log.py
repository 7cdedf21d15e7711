"""The log only grows, and a row exists exactly if what it tells of does."""

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from tests.registry.conftest import House

from expunge.registry import parties
from expunge.registry.tables import LogRow, Role


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log SET event = 'x'",
        "DELETE FROM log",
        "TRUNCATE log",
        "UPDATE log SET seq = DEFAULT",
    ],
)
def test_the_database_refuses_to_change_the_log(house: House, statement: str) -> None:
    party = house.party(Role.AUDITOR)
    with pytest.raises(DBAPIError, match="append-only"):  # noqa: SIM117
        with house.sessions.begin() as session:
            session.execute(text(statement))
    with house.sessions() as session:
        row = session.scalar(select(LogRow).where(LogRow.subject_id == party.id))
        assert row is not None
        assert (row.event, row.detail, row.actor) == ("created", {"role": "auditor"}, "test")


def test_what_was_rolled_back_leaves_no_row(house: House) -> None:
    with house.sessions() as session:
        party = parties.create_party(session, "nobody", Role.AUDITOR, actor="test")
        session.rollback()
    with house.sessions() as session:
        assert session.scalar(select(LogRow).where(LogRow.subject_id == party.id)) is None
