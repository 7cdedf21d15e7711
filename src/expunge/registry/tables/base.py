"""What all tables share: the base class with its naming rules, checks of columns of states, indexes of documents."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    DateTime,
    Index,
    MetaData,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute


class Table(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
    }


STRINGS: ColumnElement[Any] = literal_column("""'strict $.** ? (@.type() == "string")'::jsonpath""")
"""Path of every string of a document, however deep: text of the statement, since an index is of exactly these words."""


def strings_of(document: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[Any]:
    """All strings of a JSONB document, as one array."""
    return func.jsonb_path_query_array(document, STRINGS, type_=JSONB)


def strings_index(name: str, document: InstrumentedAttribute[Any]) -> Index:
    """An index of which documents have a string; rows enter it when they are written, so that lookups read no list."""
    return Index(
        name,
        strings_of(document),
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )


def states_check(column: str, states: type[StrEnum]) -> CheckConstraint:
    """A constraint that holds `column` to the values of `states`."""
    values = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({values})", name=column)
