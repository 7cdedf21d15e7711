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

from expunge.registry import log
from expunge.registry.errors import Invalid
from expunge.registry.tables import LogRow

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_CURSOR_CHARS = 200
MAX_OFFSET_DIGITS = 18
"""What a database's integer holds in any case."""

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


async def _page_request(
    cursor: Annotated[
        str | None,
        Query(max_length=MAX_CURSOR_CHARS, description="`next_cursor` of the page before."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> PageRequest:
    return PageRequest(None if cursor is None else decode(cursor), limit)


Paging = Annotated[PageRequest, Depends(_page_request)]


def rows(
    session: Session, readable: Select[Row], page: PageRequest, *, oldest_first: bool = False
) -> tuple[list[Row], str | None]:
    """The wanted rows of a readable table, newest first unless said otherwise, and the cursor of what follows."""
    table: Any = readable.column_descriptions[0]["entity"]
    if page.after is not None:
        following = table.id > page.after if oldest_first else table.id < page.after
        readable = readable.where(following)
    order = table.id if oldest_first else table.id.desc()
    found = session.scalars(readable.order_by(order).limit(page.limit + 1)).all()
    return cut(found, page.limit, lambda row: row.id)


def log_rows(
    session: Session, subject_id: str, page: PageRequest
) -> tuple[list[tuple[int, LogRow]], str | None]:
    """The wanted rows of the log about a subject, oldest first and numbered from 1, and the cursor of what follows."""
    start = offset(page)
    found = log.entries(session, subject_id, start=start, limit=page.limit + 1)
    return cut([*enumerate(found, start + 1)], page.limit, lambda numbered: str(numbered[0]))


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
    if not page.after.isdecimal() or len(page.after) > MAX_OFFSET_DIGITS:
        raise Invalid("cursor is not one that this service gave out.")
    return int(page.after)
