"""All checks of a service, one after the other. Any may be done while the service works."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from sqlalchemy import Engine, func, select

from expunge.evidence.signing import UnusableKey
from expunge.registry import log, signing_keys
from expunge.registry.database import Sessions, sessions
from expunge.registry.fsck import lives, objects, parts, record
from expunge.registry.fsck.finding import Check, Finding
from expunge.registry.fsck.rules import OF_PARTS, Rule
from expunge.registry.lifecycles import JobState
from expunge.registry.migration import fits, is_current, revision_of
from expunge.registry.objects import ObjectStore
from expunge.registry.settings import Settings
from expunge.registry.tables import Job, LogRow, UnsealedRow

LATE = timedelta(minutes=5)
"""A dispatcher that runs announces and seals within seconds."""
BACKUP_AGE = timedelta(days=2)
"""Of the newest backup, to be told of."""
STATEMENT_TIMEOUT = "30min"
"""Of whoever checks: the changes of all jobs' states take minutes to read from a log of many millions of rows."""
TOLD = 1000
"""Findings of a check that are told one by one: where everything is broken, the rest is like them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at and what was found."""

    findings: list[Finding]
    jobs: int
    requests: int
    log_leaves: int
    deep: bool

    @property
    def is_consistent(self) -> bool:
        """Whether nothing is broken."""
        return not any(each.broken for each in self.findings)


def check(settings: Settings, engine: Engine, store: ObjectStore, *, deep: bool = False) -> Report:
    """Check everything; with `deep` every named object is read to its last byte.

    Raises:
        StoreUnavailable, OperationalError: it could not be checked.
    """
    schema = list(_schema(engine))
    if any(each.broken for each in schema):
        return Report(schema, 0, 0, 0, deep)
    within = sessions(engine)
    counted: Counter[str] = Counter()
    found = _few(
        chain(
            schema,
            _rules(engine, settings, counted),
            _announced(within),
            objects.named(within, store, deep=deep),
            # Of a newer schema other columns may name some.
            objects.unnamed(within, store) if is_current(engine) else (),
        )
    )
    sealed = record.check(engine)
    if sealed.broken is not None:
        found.append(Finding(Check.LOG, f"the log is broken: {_place(sealed.broken)}"))
    found += _unsealed(within)
    found += _signing_key(within, settings)
    found += _backups(within, settings)
    return Report(found, counted["jobs"], counted["requests"], sealed.size, deep)


def _few(findings: Iterable[Finding]) -> list[Finding]:
    """The first of each check, and how many more there are."""
    found: list[Finding] = []
    counted: Counter[tuple[Check, bool]] = Counter()
    for each in findings:
        counted[each.check, each.broken] += 1
        if counted[each.check, each.broken] <= TOLD:
            found.append(each)
    return found + [
        Finding(check, f"and {count - TOLD:,} more", broken)
        for (check, broken), count in counted.items()
        if count > TOLD
    ]


def _schema(engine: Engine) -> Iterator[Finding]:
    if is_current(engine):
        return
    with engine.connect() as connection:
        revision = revision_of(connection)
    words = f"the schema is at revision {revision}"
    if not fits(engine):
        yield Finding(Check.SCHEMA, f"{words}: this program cannot run on it")
        return
    yield Finding(Check.SCHEMA, f"{words}, newer than this program", broken=False)


def _rules(engine: Engine, settings: Settings, counted: Counter[str]) -> Iterator[Finding]:
    """What breaks the rules, and who fell silent; counts the rows of each table that were looked at."""
    tolerance = settings.lease_seconds + LATE.total_seconds()
    for part in parts.parts(engine):
        for table, rows in part.tables.items():
            counted[table] += len(rows)
        for rule in OF_PARTS:
            yield from _broken(rule, rule(part))
        for words in lives.live_jobs_have_live_leases(part, tolerance):
            yield Finding(Check.QUEUE, words, broken=False)
    alone = lives.a_worker_runs_one_job_and_a_model_one_training
    yield from _broken(alone, lives.at_once(parts.changes(engine)))


def _broken(rule: Rule, found: Iterable[str]) -> Iterator[Finding]:
    name = rule.__name__.replace("_", " ")
    return (Finding(Check.RULES, f"{name}: {words}") for words in found)


def _announced(within: Sessions) -> Iterator[Finding]:
    late = select(func.count()).where(
        Job.state == JobState.QUEUED, Job.published_at.is_(None), Job.due_at < func.now() - LATE
    )
    with within() as session:
        if count := session.scalar(late):
            words = f"{count} jobs are due and nobody announced them"
            yield Finding(Check.QUEUE, words, broken=False)


def _place(broken: record.Broken) -> str:
    told = {"row": broken.seq, "position": broken.position, "tree head": broken.size}
    where = ", ".join(f"{name} {at}" for name, at in told.items() if at is not None)
    return f"{broken.link} ({where}) {broken.detail}".strip()


def _unsealed(within: Sessions) -> Iterator[Finding]:
    late = (
        select(func.count())
        .select_from(UnsealedRow)
        .join(LogRow, LogRow.seq == UnsealedRow.seq)
        # Those that no seal fits are the record's own complaint.
        .where(LogRow.at < func.now() - LATE, UnsealedRow.refused_at.is_(None))
    )
    with within() as session:
        if count := session.scalar(late):
            words = (
                f"{count} rows of the log wait to be sealed: no dispatcher runs, or it cannot sign"
            )
            yield Finding(Check.LOG, words, broken=False)


def _signing_key(within: Sessions, settings: Settings) -> Iterator[Finding]:
    try:
        with within() as session:
            signer = signing_keys.load(settings)
            in_use = signing_keys.in_use(session)
    except UnusableKey as error:
        yield Finding(Check.SIGNING_KEY, f"the signing key cannot be used: {error}")
        return
    if in_use is None:
        words = "nothing is signed: the service has no signing key"
        if signer is None:
            yield Finding(Check.SIGNING_KEY, words, broken=False)
    elif signer is None:
        words = f"the service signs with {in_use.id}; this process was given no key"
        yield Finding(Check.SIGNING_KEY, words, broken=False)
    elif signer.key_id != in_use.id:
        words = f"the service signs with {in_use.id}; this process has {signer.key_id}"
        yield Finding(Check.SIGNING_KEY, words)


def _backups(within: Sessions, settings: Settings) -> Iterator[Finding]:
    taken = select(func.max(LogRow.at)).where(
        LogRow.subject_id == log.BACKUP, LogRow.event == log.TAKEN
    )
    with within() as session:
        newest = session.scalar(taken)
        is_old = newest is not None and session.scalar(select(func.now() - BACKUP_AGE > newest))
    if newest is None:
        yield Finding(Check.BACKUPS, "no backup was taken of this database", broken=False)
        return
    if is_old:
        words = f"the newest backup is of {newest:%Y-%m-%d}"
        yield Finding(Check.BACKUPS, words, broken=False)
    if not settings.backup_retention_days:
        words = (
            "backups are kept, but nothing says for how long: owners of deleted data are not told, "
            "and old backups are not removed"
        )
        yield Finding(Check.BACKUPS, words, broken=False)
