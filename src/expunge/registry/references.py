"""Which rows name an object. A column that names objects and is not here would lose them to the sweep."""

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    cast,
    func,
    inspect,
    literal_column,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH
from sqlalchemy.orm import InstrumentedAttribute, Session

from expunge.registry.database import Sessions
from expunge.registry.lifecycles import CheckpointState, JobState
from expunge.registry.tables import Audit, Checkpoint, Comparison, Dataset, Encoding, Job, Shard

LIVE = (JobState.RUNNING, JobState.EVALUATING)
UNFINISHED = (JobState.QUEUED, *LIVE)
"""Jobs in other states never go on from their snapshot."""
ENDED = (CheckpointState.DESTROYING, CheckpointState.DESTROYED)
"""Checkpoints in these states keep their keys, but name nothing any more."""
STRINGS = 'strict $.** ? (@.type() == "string")'
"""JSON path of every string of a document, however deep."""
PAGE = 1000
"""Rows read at a time."""

COLUMNS: tuple[InstrumentedAttribute[Any], ...] = (
    Shard.object_key,
    Dataset.index_key,
    Checkpoint.object_key,
    Checkpoint.release_key,
    Job.snapshot_key,
    Audit.objects,
    Comparison.objects,
    Encoding.views_key,
    Encoding.outputs_key,
)
"""Each holds one key, or a document whose strings are keys."""


def named(session: Session, keys: Collection[str]) -> set[str]:
    """Those of the keys that at least one row names now."""
    naming = union_all(*(_keys_of(column) for column in COLUMNS)).subquery()
    found: ColumnElement[str] = naming.c.key
    return set(session.scalars(select(found).where(found.in_(keys))))


def _keys_of(column: InstrumentedAttribute[Any]) -> Select[tuple[str]]:
    keys = (
        func.jsonb_path_query(column, cast(STRINGS, JSONPATH)).op("#>>")(literal_column("'{}'"))
        if _is_document(column)
        else column
    )
    return select(keys.label("key")).where(_counts(column))


def _is_document(column: InstrumentedAttribute[Any]) -> bool:
    return isinstance(column.type, JSONB)


def _counts(column: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    there = column.is_not(None)
    if column.class_ is Job:
        return there & Job.state.in_(UNFINISHED)
    if column.class_ is Checkpoint:
        return there & Checkpoint.state.not_in(ENDED)
    return there


def every(sessions: Sessions) -> Iterator[tuple[str, str]]:
    """All (key, table and id of a row that names it), read page by page in transactions of their own."""
    for column in COLUMNS:
        table = column.class_
        identity = inspect(table).primary_key
        pages = select(*identity, column).where(_counts(column)).order_by(*identity).limit(PAGE)
        query = pages
        while True:
            with sessions() as session:
                rows = session.execute(query).all()
            for *ids, value in rows:
                row = f"{table.__tablename__} {'/'.join(ids)}"
                yield from ((key, row) for key in keys_in(value))
            if len(rows) < PAGE:
                break
            query = pages.where(tuple_(*identity) > tuple_(*rows[-1][:-1]))


def keys_in(value: Any) -> Iterator[str]:
    """The keys that a row's column holds: one, or all strings of a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from keys_in(inner)
