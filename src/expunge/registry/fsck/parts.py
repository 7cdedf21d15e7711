"""The database a part at a time: some rows, and beside them whatever the rules look up about these. Never writes.

However large the database is, no more than one part is in memory, and no statement goes through all of it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, text

from expunge.registry import lifecycles
from expunge.registry.fsck.records import Records, Row
from expunge.registry.fsck.results import PROMOTED

PAGE = 500
"""Rows that are checked at a time."""
CHECKPOINTS = 20
"""Checkpoints at a time: beside each are all data sets that it and its parent were trained on."""
CHANGES = 2000
"""Rows of the log that are read at a time."""
COLUMNS = {
    "models": "id, head_checkpoint_id",
    "checkpoints": "id, model_id, parent_id, job_id, state, problem",
    "checkpoint_datasets": "checkpoint_id, dataset_id, forgotten",
    "requests": "id, model_id, job_id, state, reason, effective_at",
    "request_datasets": "request_id, dataset_id",
    "jobs": "id, kind, model_id, state, attempt, reason, failure, lease_expires_at, "
    "base_checkpoint_id, result_checkpoint_id",
    "log": "seq, subject_id, event, detail",
}
"""What the rules look at: parameters and results of jobs are large."""
STATES = sorted({*lifecycles.JOB, *lifecycles.REQUEST})

_LOG = "subject_id = ANY(:ids) AND event = ANY(:states)"
_OTHERS = """
FROM requests r JOIN request_datasets d ON d.request_id = r.id
JOIN request_datasets e ON e.dataset_id = d.dataset_id AND e.request_id <> r.id
JOIN requests o ON o.id = e.request_id AND o.model_id = r.model_id AND o.state = 'completed'
WHERE r.id = ANY(:ids) AND r.state = 'completed'
"""
_HELD = """
(checkpoint_id, dataset_id) IN (
    SELECT c.id, d.dataset_id FROM requests r
    JOIN request_datasets d ON d.request_id = r.id
    JOIN models m ON m.id = r.model_id
    LEFT JOIN jobs j ON j.id = r.job_id
    JOIN checkpoints c
        ON c.id IN (j.base_checkpoint_id, j.result_checkpoint_id, m.head_checkpoint_id)
    WHERE r.{column} = ANY(:ids)
)
"""
"""Of what was asked, what the checkpoints hold that the rules ask: no more than three rows for each data set."""
_PARENTS = "SELECT parent_id FROM checkpoints WHERE id = ANY(:ids)"
BESIDE: Mapping[str, Mapping[str, str]] = {
    "jobs": {
        "log": _LOG,
        "requests": "job_id = ANY(:ids)",
        "request_datasets": "request_id IN (SELECT id FROM requests WHERE job_id = ANY(:ids))",
        "checkpoints": "job_id = ANY(:ids)",
        "checkpoint_datasets": _HELD.format(column="job_id"),
    },
    "requests": {
        "log": _LOG,
        "jobs": "id IN (SELECT job_id FROM requests WHERE id = ANY(:ids))",
        "models": "id IN (SELECT model_id FROM requests WHERE id = ANY(:ids))",
        "requests": f"id IN (SELECT o.id {_OTHERS})",
        "request_datasets": "request_id = ANY(:ids) OR (request_id, dataset_id) IN "
        f"(SELECT e.request_id, e.dataset_id {_OTHERS})",
        "checkpoint_datasets": _HELD.format(column="id"),
    },
    "checkpoints": {
        "jobs": "id IN (SELECT job_id FROM checkpoints WHERE id = ANY(:ids))",
        "checkpoints": f"id IN ({_PARENTS}) OR parent_id IN ({_PARENTS})",
        "checkpoint_datasets": f"checkpoint_id = ANY(:ids) OR checkpoint_id IN ({_PARENTS})",
    },
    "models": {
        "checkpoints": "id IN (SELECT head_checkpoint_id FROM models WHERE id = ANY(:ids))",
        "log": "seq IN (SELECT max(seq) FROM log WHERE subject_id = ANY(:ids) AND event = :promoted "
        "GROUP BY subject_id)",
    },
}
"""By what the rules go through: which rows they look up about it, by table."""


def parts(engine: Engine) -> Iterator[Records]:
    """All jobs, requests, checkpoints and models, each in one part, which is of one moment."""
    for table in BESIDE:
        last = ""
        while True:
            # A picture for each part: one for all of them would keep the database from tidying up.
            with _picture(engine) as connection:
                found = _part(connection, table, last)
            if not found[table]:
                break
            yield found
            last = found[table][-1]["id"]


def _part(connection: Connection, table: str, last: str) -> Records:
    count = CHECKPOINTS if table == "checkpoints" else PAGE
    rows = _rows(connection, table, "id > :last ORDER BY id LIMIT :count", last=last, count=count)
    ids = [row["id"] for row in rows]
    beside = {
        name: _rows(connection, name, where, ids=ids, states=STATES, promoted=PROMOTED)
        for name, where in (BESIDE[table] if ids else {}).items()
    }
    own = set(ids)
    beside[table] = [row for row in beside.get(table, []) if row["id"] not in own]
    beside.get("log", []).sort(key=lambda row: row["seq"])
    now = connection.execute(text("SELECT now() AS now")).mappings().one()
    return Records({table: rows, "clock": [dict(now)]}, beside=beside)


def changes(engine: Engine) -> Iterator[Row]:
    """Each change of a job's state, oldest first, with the job's kind and model; all of one moment."""
    query = text(
        "SELECT log.seq, log.subject_id, log.event, log.detail, jobs.kind, jobs.model_id "
        "FROM (SELECT * FROM log WHERE seq > :last ORDER BY seq LIMIT :count) log "
        "JOIN jobs ON jobs.id = log.subject_id WHERE log.event = ANY(:states) ORDER BY log.seq"
    )
    ends = text(
        "SELECT max(seq) FROM (SELECT seq FROM log WHERE seq > :last ORDER BY seq LIMIT :count) log"
    )
    last = 0
    # An end that is committed late must not be missing where the start after it is there.
    with _picture(engine) as connection:
        while (end := connection.scalar(ends, {"last": last, "count": CHANGES})) is not None:
            bounds = {"last": last, "count": CHANGES, "states": STATES}
            yield from map(dict, connection.execute(query, bounds).mappings())
            last = end


def _rows(connection: Connection, table: str, where: str, **values: Any) -> list[dict[str, Any]]:
    query = text(f"SELECT {COLUMNS[table]} FROM {table} WHERE {where}")  # noqa: S608 - written above
    used = {name: value for name, value in values.items() if f":{name}" in where}
    return [dict(row) for row in connection.execute(query, used).mappings()]


@contextmanager
def _picture(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        yield connection
