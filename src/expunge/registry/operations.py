"""What an operator does with a whole service, and how it is told: see `commands`. Decides nothing by itself.

Each operation returns the process's exit status: 0, or 1 if it was done and something is to be looked at.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import typer
from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from expunge.evidence.signing import Signer, UnusableKey
from expunge.registry import backup as backups
from expunge.registry import fsck as checks
from expunge.registry import migration, parties, signing_keys
from expunge.registry.backup import Archive, BackupRefused, Restored, Taken
from expunge.registry.database import STATEMENT_TIMEOUT, connect, sessions
from expunge.registry.fsck import ADVICE, Report
from expunge.registry.log import SERVICE
from expunge.registry.objects import ObjectStore, StoreUnavailable, open_store
from expunge.registry.settings import Settings
from expunge.registry.signing_keys import NoSigningKey

CANNOT = 2
"""Exit status of an operation that was refused or could not be done."""
EXPECTED = (
    BackupRefused,
    DBAPIError,
    # Made by COPY, which SQLAlchemy knows nothing of.
    psycopg.Error,
    NoSigningKey,
    OSError,
    StoreUnavailable,
    UnusableKey,
    # Of settings that are missing or wrong; their values are not in its words.
    ValidationError,
)


def carry_out(operation: Callable[[], int]) -> NoReturn:
    """Do what was asked for, and end with its exit status; why it cannot be done is said on stderr."""
    try:
        status = operation()
    except EXPECTED as error:
        typer.echo(str(error), err=True)
        status = CANNOT
    raise typer.Exit(status)


def migrate() -> int:
    """See `migration.migrate`."""
    migration.migrate(Settings().database_url)
    return 0


def operator_key(name: str) -> int:
    """Issue a key to the operator of that name."""
    with _database(Settings()) as engine, sessions(engine).begin() as session:
        party = parties.operator_named(session, name, actor=SERVICE)
        issued = parties.issue_key(session, party.id, expires_in_days=None, actor=SERVICE)
        told = {"party_id": party.id, "key_id": issued.key.id, "secret": issued.secret}
    typer.echo(json.dumps(told))
    return 0


def new_signing_key(path: Path) -> int:
    """Make a key that nothing knows yet."""
    signer = Signer.create(path)
    typer.echo(json.dumps({"key_id": signer.key_id, "public_key": signer.public_key.pem}))
    return 0


def rotate_signing_key(path: Path) -> int:
    """Let the key in use introduce that of the file."""
    settings, new = Settings(), Signer.load(path)
    with _database(settings) as engine, sessions(engine).begin() as session:
        old = signing_keys.required(session, settings)
        told = {"retired": old.key_id, "in_use": signing_keys.rotate(session, old, new).id}
    typer.echo(json.dumps(told))
    return 0


def backup(folder: Path, *, deep: bool) -> int:
    """See `backup.take`."""
    with _service() as (settings, engine, store):
        taken = backups.take(
            engine, store, folder, keep_days=settings.backup_retention_days, deep=deep
        )
    _print(_told_of(taken))
    return 1 if taken.manifest.missing or taken.damaged else 0


def note_endings(folder: Path) -> int:
    """See `backup.note`."""
    with _database(Settings()) as engine:
        found = backups.note(sessions(engine), Archive(folder))
    _print({name: len(ids) for name, ids in found})
    return 0


def _told_of(taken: Taken) -> dict[str, Any]:
    manifest = taken.manifest
    return {
        "backup": taken.name,
        "manifest_sha256": taken.manifest_sha256,
        "rows": sum(each.rows for each in manifest.tables.values()),
        "objects": manifest.objects.count,
        "bytes": manifest.objects.bytes,
        "copied": taken.copied,
        "log_size": 0 if manifest.log is None else manifest.log.size,
        "missing": [each.model_dump() for each in manifest.missing],
        "removed": taken.outdated,
        "damaged": taken.damaged,
    }


def restore(
    folder: Path,
    *,
    name: str | None,
    manifest_sha256: str | None,
    add_to_store: bool,
    without_damaged: bool,
) -> int:
    """See `backup.restore`."""
    with _service() as (settings, engine, store):
        restored = backups.restore(
            engine,
            store,
            folder,
            name=name,
            manifest_sha256=manifest_sha256,
            add_to_store=add_to_store,
            without_damaged=without_damaged,
            keep_days=settings.backup_retention_days,
        )
    _print(_told_of_restored(restored))
    return 1 if restored.held or restored.manifest.missing or restored.damaged else 0


def put_back(folder: Path, *, name: str | None) -> int:
    """See `backup.mend`."""
    with _service() as (_, engine, store):
        mended = backups.mend(engine, store, folder, name=name)
    _print({"objects_put": mended.put, "damaged": mended.damaged})
    return 1 if mended.damaged else 0


def _told_of_restored(restored: Restored) -> dict[str, Any]:
    end = restored.manifest.log
    size = 0 if end is None else end.size
    return {
        "backup": restored.name,
        "taken_at": restored.manifest.taken_at.isoformat(),
        "objects_put": restored.put,
        "jobs_waiting_again": restored.requeued,
        "log_size": size,
        "log": f"the log ends at row {size} of the sealed ones: tree heads of more rows that were "
        "published since are not in it, and whoever kept one can tell",
        "missing": [each.model_dump() for each in restored.manifest.missing],
        "damaged": restored.damaged,
        "ended_since_but_needed": restored.held,
    }


def fsck(*, deep: bool, as_json: bool) -> int:
    """See `fsck.check`."""
    with _service(checks.STATEMENT_TIMEOUT) as (settings, engine, store):
        report = checks.check(settings, engine, store, deep=deep)
    if as_json:
        _print(_as_json(report))
    else:
        typer.echo(_as_text(report))
    return 0 if report.is_consistent else 1


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "consistent": report.is_consistent,
        "checked": {
            "jobs": report.jobs,
            "requests": report.requests,
            "log_leaves": report.log_leaves,
            "objects_read": report.deep,
        },
        "findings": [
            {
                "check": each.check,
                "broken": each.broken,
                "words": each.words,
                "what_to_do": ADVICE[each.check],
            }
            for each in report.findings
        ],
    }


def _as_text(report: Report) -> str:
    lines = [
        f"{'BROKEN' if each.broken else 'note  '} {each.check}: {each.words}"
        for each in sorted(report.findings, key=lambda each: not each.broken)
    ]
    checks = dict.fromkeys(each.check for each in report.findings)
    lines += [f"what to do about {each}: {ADVICE[each]}" for each in checks]
    lines.append(
        f"{'consistent' if report.is_consistent else 'NOT CONSISTENT'}: {report.jobs} jobs, "
        f"{report.requests} requests, {report.log_leaves} sealed rows of the log"
        + ("" if report.deep else "; objects were not read (--deep does)")
    )
    return "\n".join(lines)


def _print(answer: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(answer, indent=1))


@contextmanager
def _service(
    statement_timeout: str = STATEMENT_TIMEOUT,
) -> Iterator[tuple[Settings, Engine, ObjectStore]]:
    settings = Settings()
    with _database(settings, statement_timeout) as engine:
        yield settings, engine, open_store(settings)


@contextmanager
def _database(settings: Settings, statement_timeout: str = STATEMENT_TIMEOUT) -> Iterator[Engine]:
    engine = connect(settings.database_url, statement_timeout=statement_timeout)
    try:
        yield engine
    finally:
        engine.dispose()
