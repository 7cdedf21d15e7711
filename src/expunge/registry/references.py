"""Which rows name an object. A column that names objects and is not here would lose them to the sweep."""

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    Text,
    any_,
    bindparam,
    exists,
    func,
    inspect,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import InstrumentedAttribute, Session

from expunge.registry.database import Sessions
from expunge.registry.lifecycles import CheckpointState, JobState
from expunge.registry.tables import Audit, Checkpoint, Comparison, Dataset, Encoding, Job, Shard
from expunge.registry.tables.base import strings_of

LIVE = (JobState.RUNNING, JobState.EVALUATING)
UNFINISHED = (JobState.QUEUED, *LIVE)
"""Jobs in other states never go on from their snapshot."""
ENDED = (CheckpointState.DESTROYING, CheckpointState.DESTROYED)
"""Checkpoints in these states keep their keys, but name nothing any more."""
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
    """Those of the keys that at least one row names now; each is looked up, so the tables' size hardly matters."""
    if not keys:
        return set()
    wanted = bindparam("keys", sorted(keys), type_=ARRAY(Text))
    naming = union_all(*(_among(column, wanted) for column in COLUMNS))
    return set(session.scalars(naming))


def _among(column: InstrumentedAttribute[Any], wanted: BindParameter[Any]) -> Select[tuple[str]]:
    if not _is_document(column):
        return select(column).where(column == any_(wanted), _counts(column))
    key = func.unnest(wanted).column_valued("wanted")
    # Key by key: PostgreSQL would read all rows for one that asks for any of thousands.
    return select(key).where(exists().where(strings_of(column).has_key(key), _counts(column)))


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
