"""Reviews: audits that the service makes by itself, by a protocol that is fixed before the run.

One job reviews all requests of a removal that has ended, or past requests under a new head. Never
computes an audit.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from expunge.evidence.protocol import protocol
from expunge.registry import (
    alerts,
    audits,
    exposure,
    jobs,
    log,
    orphans,
    retention,
    visibility,
    waiting,
)
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import CheckpointState, DatasetState, RequestState
from expunge.registry.tables import (
    Alert,
    Audit,
    AuditPurpose,
    Checkpoint,
    Dataset,
    Job,
    JobKind,
    LogRow,
    Model,
    Party,
    Request,
)


def after_removal(session: Session, removal: Job) -> None:
    """Queue the audits of a removal's requests, in the transaction that completes them."""
    # All at once: they have expired, and one by one a thousand of them take seconds.
    requests = session.scalars(
        select(Request)
        .where(Request.job_id == removal.id)
        .order_by(Request.id)
        .execution_options(populate_existing=True)
    ).all()
    job = _enqueue(session, str(removal.model_id), removal.owner_id)
    fixed = _fixed_protocols(session, requests)
    _add(
        session,
        job,
        AuditPurpose.PROTOCOL,
        [
            _row(request, request.dataset_ids, fixed)
            | {
                "before_checkpoint_id": removal.base_checkpoint_id,
                "after_checkpoint_id": removal.result_checkpoint_id,
            }
            for request in requests
        ],
    )


def under_new_head(session: Session, model: Model, head_id: str) -> None:
    """Queue a review of past requests under a head that comes into force in this transaction."""
    if session.scalar(_affected(model.id, head_id).limit(1)) is not None:
        _enqueue(session, model.id, model.owner_id, head_id=head_id)


def _enqueue(session: Session, model_id: str, owner_id: str, **params: Any) -> Job:
    return waiting.enqueue(
        session,
        JobKind.REVIEW,
        actor=log.SERVICE,
        owner_id=owner_id,
        model_id=model_id,
        params=params,
    )


def _affected(model_id: str, head_id: str) -> Any:
    """Completed requests whose data the head is said to have forgotten, or never held; newest first.

    Not those whose own result it is: their protocol's audit is about that very checkpoint.
    """
    return (
        select(Request)
        .join(Job, Job.id == Request.job_id)
        .where(
            Request.model_id == model_id,
            Request.state == RequestState.COMPLETED,
            Job.result_checkpoint_id.is_not(None),
            Job.result_checkpoint_id != head_id,
            ~exposure.still_held(head_id),
        )
        .order_by(Request.id.desc())
    )


def begin(session: Session, lease: jobs.Lease, *, newest: int) -> list[str] | None:
    """Ids of the audits that a claimed review has to make; after a crash, of those that are left.

    A review under a head looks at the `newest` requests. If another head has come into force
    before it started, there is nothing to do: the job is ended, and the answer is None.

    Raises:
        LeaseLost: the job was given away.
    """
    job = session.get_one(Job, lease.job_id)
    head_id = job.params.get("head_id")
    found = session.scalars(select(Audit).where(Audit.job_id == job.id).order_by(Audit.id)).all()
    if head_id is not None and not found:
        model = session.get_one(Model, job.model_id)
        if model.head_checkpoint_id != head_id:
            jobs.succeed(session, lease, metrics={"superseded_by": model.head_checkpoint_id})
            return None
        jobs.note_step(session, lease, 0)
        _open_under_head(session, job, head_id, newest)
        found = session.scalars(select(Audit).where(Audit.job_id == job.id)).all()
    left = [audit.id for audit in found if audit.settled_at is None]
    # What made the last attempt crash must not hold up the others.
    first = (lease.attempt - 1) % max(1, len(left))
    return left[first:] + left[:first]


def _open_under_head(session: Session, job: Job, head_id: str, newest: int) -> None:
    requests = session.scalars(_affected(str(job.model_id), head_id).limit(newest)).all()
    # Locked until the audits are there, which from then on say that both are needed.
    ready = _ready_checkpoints(session, requests)
    kept = _kept(session, {each for request in requests for each in request.dataset_ids})
    fixed = _fixed_protocols(session, requests)
    rows = []
    for request in requests:
        dataset_ids = [each for each in request.dataset_ids if each in kept]
        removal = session.get_one(Job, request.job_id)
        since = removal.result_checkpoint_id
        if since not in ready:
            since = _oldest_without(session, request, head_id)
        if since is None or not dataset_ids:
            continue
        base = removal.base_checkpoint_id
        row = _row(request, dataset_ids, fixed)
        row["settings"]["since_checkpoint_id"] = since
        row["before_checkpoint_id"] = base if base in ready else since
        row["after_checkpoint_id"] = head_id
        rows.append(row)
    _add(session, job, AuditPurpose.LATER_HEAD, rows)


def _kept(session: Session, dataset_ids: Collection[str]) -> set[str]:
    """Those whose samples are still there; share-locked."""
    rows = retention.locked(session, Dataset, dataset_ids)
    return {row.id for row in rows if row.state == DatasetState.SEALED}


def _ready_checkpoints(session: Session, requests: Sequence[Request]) -> set[str]:
    """Ids of the requests' bases and results whose weights are still there; share-locked."""
    removals = {request.job_id for request in requests}
    pairs = select(Job.base_checkpoint_id, Job.result_checkpoint_id).where(Job.id.in_(removals))
    ids = {each for pair in session.execute(pairs) for each in pair if each is not None}
    rows = retention.locked(session, Checkpoint, ids)
    return {row.id for row in rows if row.state == CheckpointState.READY}


def _oldest_without(session: Session, request: Request, head_id: str) -> str | None:
    """The oldest checkpoint since a request was carried out that is still there and has none of its data."""
    return session.scalar(
        select(Checkpoint.id)
        .join(Request, Request.model_id == Checkpoint.model_id)
        .where(
            Request.id == request.id,
            Checkpoint.state == CheckpointState.READY,
            Checkpoint.created_at >= Request.finished_at,
            Checkpoint.id != head_id,
            ~exposure.still_held(Checkpoint.id),
        )
        .order_by(Checkpoint.created_at)
        .limit(1)
    )


def _fixed_protocols(session: Session, requests: Iterable[Request]) -> dict[str, dict[str, Any]]:
    """By request, the protocol that the log has had since the request was made."""
    logged = select(LogRow.subject_id, LogRow.detail["protocol"]).where(
        LogRow.subject_id.in_([request.id for request in requests]),
        LogRow.event == RequestState.RECEIVED,
    )
    found = {subject: fixed for subject, fixed in session.execute(logged) if fixed is not None}
    # Requests from before protocols were logged.
    return {each.id: found.get(each.id) or protocol(each.model_id, each.id) for each in requests}


def _row(
    request: Request, dataset_ids: list[str], fixed: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "request_id": request.id,
        "owner_id": request.owner_id,
        "settings": {"dataset_ids": dataset_ids, "sample_keys": None} | fixed[request.id],
    }


def _add(session: Session, job: Job, purpose: AuditPurpose, rows: list[dict[str, Any]]) -> None:
    if rows:
        shared = {"job_id": job.id, "purpose": purpose}
        session.execute(
            insert(Audit), [{"id": new_id(Prefix.AUDIT)} | shared | row for row in rows]
        )


def settle(
    session: Session,
    lease: jobs.Lease,
    audit_id: str,
    *,
    report: dict[str, Any],
    bundle_key: str,
    relearned: dict[str, Any] | None = None,
) -> None:
    """Record one audit of a review for good, and an alert where `relearned` is given.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    audit = _settled(session, lease, audit_id)
    audit.report = report
    audit.objects = {audits.BUNDLE: bundle_key}
    orphans.named(session, [bundle_key])
    log.append(
        session,
        log.SERVICE,
        audit.request_id,
        "audited",
        audit_id=audit.id,
        purpose=audit.purpose,
        checkpoint_id=audit.after_checkpoint_id,
        verdict=report["verdict"]["code"],
    )
    if relearned is not None:
        alerts.relearned(session, audit, relearned)


def give_up(session: Session, lease: jobs.Lease, audit_id: str, reason: str) -> None:
    """Leave one audit of a review out for good; the others go on.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    _settled(session, lease, audit_id).reason = reason


def _settled(session: Session, lease: jobs.Lease, audit_id: str) -> Audit:
    audit = session.get_one(Audit, audit_id)
    audit.settled_at = func.now()
    session.flush()
    done = select(func.count()).where(Audit.job_id == lease.job_id, Audit.settled_at.is_not(None))
    # Whoever crashes after this has got further than the last time.
    jobs.note_step(session, lease, session.scalar(done) or 0)
    return audit


def finish(session: Session, lease: jobs.Lease, metrics: dict[str, Any]) -> None:
    """End a review whose audits are all settled.

    Raises:
        LeaseLost: the job was given away.
    """
    made = select(Audit.reason.is_(None), func.count()).where(Audit.job_id == lease.job_id)
    counts = {
        bool(ok): count for ok, count in session.execute(made.group_by(Audit.reason.is_(None)))
    }
    told = {"audits": counts.get(True, 0), "given_up": counts.get(False, 0)}
    jobs.succeed(session, lease, metrics=told | metrics)


@dataclass(frozen=True, slots=True)
class Findings:
    """What reviews have led to for a request, as a party may know it."""

    protocol_audit_id: str | None = None
    alerts: int = 0


def findings(session: Session, party: Party, requests: Sequence[Request]) -> dict[str, Findings]:
    """By request."""
    ids = [each.id for each in requests if each.state == RequestState.COMPLETED]
    audit_ids: dict[str, str] = {}
    raised: dict[str, int] = {}
    if ids:
        made = session.execute(
            visibility.audits(party)
            .with_only_columns(Audit.request_id, Audit.id)
            .where(Audit.request_id.in_(ids), Audit.purpose == AuditPurpose.PROTOCOL)
        )
        audit_ids = {row.request_id: row.id for row in made}
        counted = select(Alert.request_id, func.count().label("raised")).where(
            Alert.request_id.in_(ids)
        )
        counts = session.execute(counted.group_by(Alert.request_id))
        raised = {row.request_id: row.raised for row in counts}
    return {each.id: Findings(audit_ids.get(each.id), raised.get(each.id, 0)) for each in requests}
