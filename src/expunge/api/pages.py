"""Lists in pages: newest first, an opaque cursor that names the last row shown. Never counts rows."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import Select
from sqlalchemy.orm import Session

from expunge.registry.errors import Invalid

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_CURSOR_CHARS = 200

Item = TypeVar("Item")
Row = TypeVar("Row")


class Page(BaseModel, Generic[Item]):
    """A part of a list."""

    items: list[Item]
    next_cursor: str | None = Field(description="Pass it as `cursor` for what follows.")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list is wanted; `after` is the decoded cursor."""

    after: str | None
    limit: int


def _page_request(
    cursor: Annotated[
        str | None,
        Query(max_length=MAX_CURSOR_CHARS, description="`next_cursor` of the page before."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> PageRequest:
    return PageRequest(None if cursor is None else decode(cursor), limit)


Paging = Annotated[PageRequest, Depends(_page_request)]


def rows(
    session: Session, readable: Select[Row], page: PageRequest
) -> tuple[list[Row], str | None]:
    """The wanted rows of a readable table, newest first, and the cursor of what follows."""
    table: Any = readable.column_descriptions[0]["entity"]
    if page.after is not None:
        readable = readable.where(table.id < page.after)
    found = session.scalars(readable.order_by(table.id.desc()).limit(page.limit + 1)).all()
    return cut(found, page.limit, lambda row: row.id)


def cut(found: Sequence[Row], limit: int, position: Any) -> tuple[list[Row], str | None]:
    """The first `limit` of at most `limit + 1` rows, and the cursor if there is one more."""
    shown = list(found[:limit])
    return shown, encode(position(shown[-1])) if len(found) > limit else None


def encode(position: str) -> str:
    """A position as a cursor."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """A cursor's position.

    Raises:
        Invalid: the service never made this cursor.
    """
    try:
        position = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        text = position.decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise Invalid("cursor is not one that this service gave out.") from error
    if not text.isprintable():
        raise Invalid("cursor is not one that this service gave out.")
    return text


def offset(page: PageRequest) -> int:
    """The position of a page in a list that is numbered instead of sorted by id.

    Raises:
        Invalid: the cursor is not a number.
    """
    if page.after is None:
        return 0
    if not page.after.isdecimal():
        raise Invalid("cursor is not one that this service gave out.")
    return int(page.after)
