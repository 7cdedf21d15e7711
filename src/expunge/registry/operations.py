"""What an operator does with a whole service: back it up, restore it, check it. Prints; decides nothing."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from expunge.registry import backup, fsck
from expunge.registry.backup import Archive, Restored, Taken
from expunge.registry.database import connect, sessions
from expunge.registry.fsck import ADVICE, Report
from expunge.registry.objects import ObjectStore, open_store
from expunge.registry.settings import Settings

Operation = Callable[[argparse.Namespace, Settings, Engine, ObjectStore], int]
"""Returns the process's exit status."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The operations' own commands."""
    take = commands.add_parser("backup", help="back up database and objects while the service runs")
    take.add_argument("folder", type=Path, help="holds all backups, and each object once")
    take.add_argument("--deep", action="store_true", help="read and mend the objects that it holds")
    take.add_argument(
        "--endings-only",
        action="store_true",
        help="only note what has ended for good, so that no restore brings it back; takes a moment",
    )
    put = commands.add_parser("restore", help="restore a backup into an empty database and store")
    put.add_argument("folder", type=Path)
    put.add_argument("--name", help="which backup; the newest if it is left out")
    put.add_argument("--manifest-sha256", help="what `backup` printed: refuse any other manifest")
    put.add_argument(
        "--add-to-store", action="store_true", help="the store may hold objects, which stay"
    )
    put.add_argument(
        "--objects-only",
        action="store_true",
        help="leave the database alone: put back lost and damaged objects that its rows name",
    )
    check = commands.add_parser("fsck", help="check that database, objects and log are consistent")
    check.add_argument("--deep", action="store_true", help="read every object to its last byte")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    for name, operation in OPERATIONS.items():
        commands.choices[name].set_defaults(operation=operation)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do what was asked for; the exit status.

    Raises:
        BackupRefused, StoreUnavailable, OperationalError: see the operations.
    """
    engine = connect(settings.database_url)
    try:
        operation: Operation = arguments.operation
        return operation(arguments, settings, engine, open_store(settings))
    finally:
        engine.dispose()


def _backup(
    arguments: argparse.Namespace, settings: Settings, engine: Engine, store: ObjectStore
) -> int:
    if arguments.endings_only:
        kept = Archive(arguments.folder)
        with kept.locked():
            found = backup.note(sessions(engine), kept)
        _print({name: len(ids) for name, ids in found})
        return 0
    taken = backup.take(
        engine,
        store,
        arguments.folder,
        keep_days=settings.backup_retention_days,
        deep=arguments.deep,
    )
    _print(_told_of(taken))
    return 1 if taken.manifest.missing else 0


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
    }


def _restore(
    arguments: argparse.Namespace, settings: Settings, engine: Engine, store: ObjectStore
) -> int:
    if arguments.objects_only:
        put = backup.mend(engine, store, arguments.folder, name=arguments.name)
        _print({"objects_put": put})
        return 0
    restored = backup.restore(
        engine,
        store,
        arguments.folder,
        name=arguments.name,
        manifest_sha256=arguments.manifest_sha256,
        add_to_store=arguments.add_to_store,
        keep_days=settings.backup_retention_days,
    )
    _print(_told_of_restored(restored))
    return 1 if restored.held or restored.manifest.missing else 0


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
        "ended_since_but_needed": restored.held,
    }


def _fsck(
    arguments: argparse.Namespace, settings: Settings, engine: Engine, store: ObjectStore
) -> int:
    report = fsck.check(settings, engine, store, deep=arguments.deep)
    if arguments.json:
        _print(_as_json(report))
    else:
        sys.stdout.write(_as_text(report))
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
    return "\n".join(lines) + "\n"


def _print(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, indent=1) + "\n")


OPERATIONS: dict[str, Operation] = {"backup": _backup, "restore": _restore, "fsck": _fsck}
