"""Erasure certificates: written once a request is completed and its completion sealed, then never changed."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.evidence import certificate as paper
from expunge.evidence.canonical import canonical
from expunge.evidence.chain import ROW_MEMBERS, moment
from expunge.evidence.signing import Signer, unverified
from expunge.registry import (
    access,
    idempotency,
    log,
    manifests,
    residue,
    signing_keys,
    visibility,
)
from expunge.registry.errors import Conflict, NotFound
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import RequestState
from expunge.registry.record import proofs
from expunge.registry.settings import Settings
from expunge.registry.tables import (
    Audit,
    AuditPurpose,
    Certificate,
    Checkpoint,
    Dataset,
    IdempotencyKey,
    Job,
    LogRow,
    Model,
    Party,
    Request,
    TreeHead,
)

SEALING_SECONDS = 2
"""After which it is worth asking again for what waits to be sealed."""


class NotYetSealed(Conflict):
    """The row of the log that the certificate needs waits to be sealed."""

    slug, title = "log-not-sealed", "The log is not sealed that far yet"


def certificate(
    session: Session,
    settings: Settings,
    party: Party,
    request_id: str,
    *,
    edition: int | None = None,
) -> Certificate:
    """An edition of a request's certificate, by default the newest; the first is written when it is asked for.

    Raises:
        NotFound: not a request that the party may have certified, or no such edition.
        Conflict, NotYetSealed: there is nothing to certify, or not yet.
        NoSigningKey: the service cannot sign.
    """
    request = _certifiable(session, party, request_id)
    wanted = _editions(request)
    if edition is not None:
        found = session.scalar(wanted.where(Certificate.edition == edition))
        if found is None:
            raise NotFound.of("certificate", f"of edition {edition}")
        return found
    newest = session.scalar(wanted.limit(1))
    return newest or _issue(session, settings, party, request)


def renew(
    session: Session,
    settings: Settings,
    party: Party,
    request_id: str,
    *,
    idempotency_key: str | None = None,
) -> tuple[Certificate, bool]:
    """A further edition if anything that it says has changed, else the newest; and whether it is new.

    With the key of an earlier call, the answer is that call's: its edition, and whether that was new.

    Raises:
        IdempotencyConflict: the key was used for another call.
        NotFound, Conflict, NotYetSealed, NoSigningKey: as `certificate`.
    """
    request = _certifiable(session, party, request_id)
    newest = session.scalar(_editions(request).limit(1))
    certificate_id = new_id(Prefix.CERTIFICATE)
    call = idempotency.Call(party.id, idempotency_key, "renew-certificate", [request_id])
    if earlier := idempotency.recall(session, call):
        found = session.get_one(Certificate, earlier)
        # What one transaction writes has one time: the call made the edition, or found it there.
        remembered = session.get_one(IdempotencyKey, (party.id, idempotency_key))
        return found, found.created_at == remembered.created_at
    found = _issue(session, settings, party, request, newest=newest, certificate_id=certificate_id)
    idempotency.remember(session, call, found.id)
    return found, found.id == certificate_id


def _certifiable(session: Session, party: Party, request_id: str) -> Request:
    """The request, for its owner, its model's owner, and an auditor to whom all of its data are delegated."""
    request = visibility.one(session, visibility.requests(party), request_id)
    model = session.get_one(Model, request.model_id)
    if party.id not in (request.owner_id, model.owner_id):
        delegated = set(session.scalars(access.delegated_datasets(party)))
        if not delegated.issuperset(request.dataset_ids):
            raise NotFound.of("request", request_id)
    return request


def _editions(request: Request) -> Select[Certificate]:
    """All of a request, the newest first."""
    ordered = select(Certificate).order_by(Certificate.edition.desc())
    return ordered.where(Certificate.request_id == request.id)


def _issue(
    session: Session,
    settings: Settings,
    party: Party,
    request: Request,
    *,
    newest: Certificate | None = None,
    certificate_id: str | None = None,
) -> Certificate:
    """Write the next edition, unless it would say what the newest says or another call just wrote it."""
    job = _done(request)
    signer = signing_keys.required(session, settings)
    told = _predicate(session, request, job, signer).model_copy(
        update={
            "certificate_id": certificate_id or new_id(Prefix.CERTIFICATE),
            "edition": 1 if newest is None else newest.edition + 1,
        }
    )
    if newest is not None and _content(told) == _content(_read(newest)):
        return newest
    payload = canonical(paper.statement(told).model_dump(mode="json", by_alias=True))
    added: Certificate | None = session.scalar(
        insert(Certificate)
        .values(
            id=told.certificate_id,
            request_id=request.id,
            edition=told.edition,
            envelope=signer.sign(paper.PAYLOAD_TYPE, payload),
        )
        .on_conflict_do_nothing()
        .returning(Certificate)
    )
    if added is None:
        return session.scalars(_editions(request).where(Certificate.edition == told.edition)).one()
    log.append(
        session,
        party.id,
        request.id,
        "certified",
        certificate_id=added.id,
        edition=added.edition,
    )
    return added


def _read(row: Certificate) -> paper.Predicate:
    return paper.Statement.model_validate_json(unverified(row.envelope)).predicate


def _content(told: paper.Predicate) -> tuple[str, dict[str, Any]]:
    """What a further edition has to differ in: who signs, and what is said."""
    return told.issuer.key_id, told.model_dump(mode="json", exclude=set(paper.VOLATILE))


def _done(request: Request) -> Job:
    if request.state != RequestState.COMPLETED or request.job is None:
        raise Conflict(
            f"Request {request.id} is {request.state}; what is certified is a completed removal.",
            state=request.state,
        )
    if request.job.result_checkpoint_id is None:
        raise Conflict(
            f"Nothing had to be changed for request {request.id}: {request.reason}. There is no "
            "removal to certify.",
        )
    return request.job


def _predicate(session: Session, request: Request, job: Job, signer: Signer) -> paper.Predicate:
    """All but id and edition."""
    manifest = manifests.find(job)
    keys = signing_keys.known(signing_keys.every(session))
    return paper.Predicate(
        certificate_id="",
        edition=0,
        issued_at=moment(datetime.now(UTC)),
        request_id=request.id,
        owner_id=request.owner_id,
        model_id=request.model_id,
        datasets=[
            paper.Dataset(id=row.id, digest=str(row.digest), samples=row.samples)
            for row in session.scalars(
                select(Dataset).where(Dataset.id.in_(request.dataset_ids)).order_by(Dataset.id)
            )
        ],
        method=request.method,
        params=request.params,
        seed=str(job.params["seed"]),
        base=_checkpoint(session.get_one(Checkpoint, job.base_checkpoint_id)),
        result=_checkpoint(session.get_one(Checkpoint, job.result_checkpoint_id)),
        metrics=_metrics(job.metrics or {}),
        exposure=paper.Exposure(
            requested_at=moment(request.created_at),
            completed_at=moment(request.finished_at or request.updated_at),
            effective_at=None if request.effective_at is None else moment(request.effective_at),
        ),
        residue=[
            paper.Residue.model_validate(each.to_dict())
            # The model's owner reads the same paper.
            for each in residue.for_others(residue.of(session, request))
        ],
        audit=_audit(session, request),
        run=None
        if manifest is None
        else paper.Run(job_id=job.id, manifest_sha256=manifest.digest()),
        log=_log_position(session, request),
        issuer=paper.Issuer(key_id=signer.key_id, keys=keys),
    )


def _checkpoint(row: Checkpoint) -> paper.Checkpoint:
    return paper.Checkpoint(id=row.id, digest=row.digest, release_digest=row.release_digest)


def _metrics(measured: dict[str, Any]) -> paper.Metrics:
    """Nothing that counts or scores the samples of others."""
    utility = measured.get("utility")
    return paper.Metrics(
        seconds=measured["seconds"],
        utility=utility and paper.Utility(before=utility["before"], after=utility["after"]),
    )


def _audit(session: Session, request: Request) -> paper.Audit | None:
    """The newest by the protocol, else the newest that the owner asked for."""
    reported = select(Audit).where(Audit.request_id == request.id, Audit.report.is_not(None))
    newest = reported.order_by(Audit.id.desc()).limit(1)
    row = session.scalar(newest.where(Audit.purpose == AuditPurpose.PROTOCOL)) or session.scalar(
        newest.where(Audit.purpose == AuditPurpose.ASKED, Audit.party_id == request.owner_id)
    )
    if row is None or row.report is None:
        return None
    return paper.Audit.of(
        row.report,
        audit_id=row.id,
        kind="protocol" if row.purpose == AuditPurpose.PROTOCOL else "asked",
        created_at=moment(row.created_at),
    )


def _log_position(session: Session, request: Request) -> paper.LogPosition:
    row = session.scalars(
        select(LogRow)
        .where(LogRow.subject_id == request.id, LogRow.event == RequestState.COMPLETED)
        .order_by(LogRow.seq)
        .limit(1)
    ).one()
    leaf = proofs.leaf_of(session, row.seq)
    head = None if leaf is None else _signed_head(session, leaf.position)
    if leaf is None or head is None or head.envelope is None:
        raise NotYetSealed(
            f"Request {request.id} is completed, but its row of the log waits to be sealed under a "
            "signed head; ask again.",
            retry_after_seconds=SEALING_SECONDS,
        )
    path = proofs.inclusion(session, [leaf.position], head.size)[leaf.position]
    evidence = log.as_evidence(row)
    return paper.LogPosition(
        row={name: getattr(evidence, name) for name in ROW_MEMBERS},
        position=leaf.position,
        inclusion=[each.hex() for each in path],
        head=head.envelope,
    )


def _signed_head(session: Session, position: int) -> TreeHead | None:
    """The newest signed head of a log that has a leaf there."""
    return session.scalar(
        select(TreeHead)
        .where(TreeHead.size > position, TreeHead.envelope.is_not(None))
        .order_by(TreeHead.size.desc())
        .limit(1)
    )
