"""Audits: what an owner may ask of their own request, and the recorded answer. Never computes one."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.registry import idempotency, jobs, orphans, waiting
from expunge.registry.errors import Conflict, Invalid, NotFound
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import RequestState
from expunge.registry.tables import Audit, Job, JobKind, Party, Request


def create(
    session: Session,
    owner: Party,
    *,
    request_id: str,
    dataset_ids: Sequence[str] | None,
    settings: dict[str, int],
    idempotency_key: str | None = None,
) -> Audit:
    """Queue an audit of an own, completed request on all or some of its data sets.

    `settings` are matrix_size, views and seed, which the answer repeats. With the key and content
    of an earlier call, the answer is that call's audit.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound: not an own request.
        Conflict: the request is not completed.
        Invalid: a data set is not part of the request.
    """
    audit_id = new_id(Prefix.AUDIT)
    call = idempotency.Call(
        owner.id,
        idempotency_key,
        "create-audit",
        [request_id, None if dataset_ids is None else sorted(set(dataset_ids)), settings],
    )
    if earlier := idempotency.remember(session, call, audit_id):
        return session.get_one(Audit, earlier)
    request = session.scalar(
        select(Request).where(Request.id == request_id, Request.owner_id == owner.id)
    )
    if request is None:
        raise NotFound.of("request", request_id)
    if request.state != RequestState.COMPLETED or request.job is None:
        raise Conflict(
            f"Request {request.id} is {request.state}; an audit compares before and after.",
            state=request.state,
        )
    if request.job.result_checkpoint_id is None:
        raise Conflict(
            f"Nothing had to be changed for request {request.id}: {request.reason}. There is no "
            "before and after to compare.",
        )
    chosen = sorted(set(dataset_ids)) if dataset_ids is not None else request.dataset_ids
    if not chosen:
        raise Invalid("dataset_ids is empty; leave it out to audit the whole request.")
    if foreign := sorted(set(chosen) - set(request.dataset_ids)):
        raise Invalid(
            f"Request {request.id} does not cover {', '.join(foreign)}.",
            allowed=request.dataset_ids,
        )
    job = waiting.enqueue(
        session,
        JobKind.AUDIT,
        actor=owner.id,
        owner_id=owner.id,
        params={"audit_id": audit_id, "dataset_ids": chosen, **settings},
    )
    audit = Audit(
        id=audit_id,
        request_id=request.id,
        owner_id=owner.id,
        party_id=owner.id,
        job_id=job.id,
        before_checkpoint_id=request.job.base_checkpoint_id,
        after_checkpoint_id=request.job.result_checkpoint_id,
    )
    session.add(audit)
    session.flush()
    return audit


def record(
    session: Session, lease: jobs.Lease, report: dict[str, Any], objects: dict[str, Any]
) -> None:
    """End an audit job with its report and the keys of its matrices and pictures.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job: Job = jobs.succeed(session, lease)
    audit = session.get_one(Audit, job.params["audit_id"])
    audit.report = report
    audit.objects = objects
    orphans.named(session, _keys(objects))


def _keys(objects: dict[str, Any]) -> list[str]:
    """Object keys by level, matrix and format, as one list."""
    return [
        key for level in objects.values() for matrix in level.values() for key in matrix.values()
    ]
