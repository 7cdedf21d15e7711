"""What still exists of a request's data, where, why and until when. Reads only; names nothing of other owners."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import Session, aliased, lazyload

from expunge.registry import destruction, lifecycles, log, policies, retention
from expunge.registry.jobs import LIVE_STATES
from expunge.registry.lifecycles import CheckpointState, DatasetState, RequestState
from expunge.registry.references import UNFINISHED
from expunge.registry.tables import (
    TRAINING_KINDS,
    Audit,
    Checkpoint,
    CheckpointDataset,
    Comparison,
    Dataset,
    Encoding,
    Job,
    JobKind,
    LogRow,
    Model,
    Request,
)

What = Literal[
    "checkpoint",
    "snapshot",
    "working-copy",
    "retrain-weights",
    "raw-samples",
    "audit",
    "encoding",
    "memory",
    "record",
    "backup",
    "outside",
]
STORE = "object store"
WORKER = "worker disk"
USING = (*TRAINING_KINDS, JobKind.COMPARE)
"""Kinds of jobs that copy training data to a worker."""


@dataclass(frozen=True, slots=True)
class Residue:
    """One thing that still holds something of a request's data, or several alike (`count`)."""

    what: What
    where: str
    state: str
    why: str
    id: str | None = None
    """None where the request's owner is not to know it."""
    digest: str | None = None
    count: int = 1
    until: datetime | None = None
    """It is destroyed then, or earlier; of several the latest."""
    condition: str | None = None
    """What has to happen (also) before it goes."""

    def to_dict(self) -> dict[str, Any]:
        """All members, the time in ISO 8601."""
        until = None if self.until is None else self.until.isoformat()
        return asdict(self) | {"until": until}


RECORD = Residue(
    what="record",
    where="database",
    state="kept",
    why="evidence: ids, digests and numbers of samples, states, log rows, reports of audits with "
    "the keys of samples; no image and no weights",
    condition="never",
)
MEMORY = Residue(
    what="memory",
    where="memory of processes",
    state="may exist",
    why="workers that audit keep the encoders, images and outputs that they used last, the api the "
    "pictures that it drew last",
    condition="others take their place, or the process is restarted",
)
OUTSIDE = Residue(
    what="outside",
    where="outside the service",
    state="unknown",
    why="backups by other means and old versions that the operator's database or object store keeps, "
    "weights that the model's owner downloaded or serves elsewhere: the service can neither see nor destroy them",
    condition="whoever holds them destroys them",
)


def of(session: Session, request: Request) -> list[Residue]:
    """All that is left of the request's data, as its owner may know it."""
    model = session.get_one(Model, request.model_id)
    return [
        *_checkpoints(session, request, model),
        *_used_by_jobs(session, request),
        *_retrain_weights(session, request),
        *_samples(session, request),
        *_findings(session, request),
        *([MEMORY] if request.state == RequestState.COMPLETED else []),
        RECORD,
        *_backups(session),
        OUTSIDE,
    ]


def for_others(found: Sequence[Residue]) -> list[Residue]:
    """The same for the model's owner, who sees audits and encodings by their number only."""
    return list(
        _merged(
            replace(each, id=None, digest=None) if each.what in ("audit", "encoding") else each
            for each in found
        )
    )


def _holders(request: Request) -> Select[str]:
    """Ids of the checkpoints, of any model, that hold some of the request's data."""
    return select(CheckpointDataset.checkpoint_id).where(
        CheckpointDataset.dataset_id.in_(request.dataset_ids), ~CheckpointDataset.forgotten
    )


def _checkpoints(session: Session, request: Request, model: Model) -> list[Residue]:
    holders = (
        select(Checkpoint)
        .where(
            Checkpoint.model_id == model.id,
            Checkpoint.id.in_(_holders(request)),
            or_(Checkpoint.state != CheckpointState.DESTROYED, _shares_an_object()),
        )
        .options(lazyload(Checkpoint.datasets))
        .order_by(Checkpoint.id)
    )
    known = _known(session, request)
    found = []
    for checkpoint in session.scalars(holders):
        one = _checkpoint(request, model, checkpoint)
        if checkpoint.id in known:
            one = replace(one, id=checkpoint.id, digest=checkpoint.digest)
        found.append(one)
    return list(_merged(found))


def _shares_an_object() -> ColumnElement[bool]:
    """A destroyed checkpoint whose bytes are those of one that is kept."""
    other = aliased(Checkpoint)
    return (
        select(other.id)
        .where(
            other.state.in_(retention.KEPT),
            or_(
                other.object_key == Checkpoint.object_key,
                other.release_key == Checkpoint.release_key,
            ),
        )
        .correlate(Checkpoint)
        .exists()
    )


def _known(session: Session, request: Request) -> set[str]:
    """The checkpoints that the owner knows: before and after of own requests to the model."""
    pairs = (
        select(Job.base_checkpoint_id, Job.result_checkpoint_id)
        .join(Request, Request.job_id == Job.id)
        .where(
            Request.owner_id == request.owner_id,
            Request.model_id == request.model_id,
            Request.state == RequestState.COMPLETED,
        )
    )
    return {each for pair in session.execute(pairs) for each in pair if each is not None}


def _checkpoint(request: Request, model: Model, checkpoint: Checkpoint) -> Residue:
    days = policies.of(model.policy).keep_days

    def told(state: str, why: str, condition: str | None, until: datetime | None = None) -> Residue:
        return Residue("checkpoint", STORE, state, why, until=until, condition=condition)

    match checkpoint.state:
        case CheckpointState.DESTROYED:
            return told("destroyed", destruction.KEPT_OBJECT, "nothing names them any more")
        case CheckpointState.DESTROYING:
            return told("being destroyed", "its time is over", "the store confirms that it is gone")
    if checkpoint.id == model.head_checkpoint_id:
        return told("in force", *_exposure(request))
    if request.effective_at is None:
        why = "it can be needed as long as a head holds the data"
        return told("kept", why, f"a head without the data has been in force for {days} days")
    why = f"audits compare with it; the model's policy keeps it for {days} days"
    until = request.effective_at + timedelta(days=days)
    waits = until <= datetime.now(UTC)
    return told("kept", why, "work on it has ended and a sweep came by" if waits else None, until)


def _exposure(request: Request) -> tuple[str, str]:
    """Why a head holds the data, and what ends that."""
    if request.state == RequestState.COMPLETED:
        return "the result waits to be put in force", "a head without the data comes into force"
    if not lifecycles.is_final(lifecycles.REQUEST, request.state):
        return "the request is not carried out yet", "a head without the data comes into force"
    return (
        f"the request is {request.state}: the model goes on holding the data",
        "another request is carried out",
    )


def _merged(found: Sequence[Residue] | Iterator[Residue]) -> Iterator[Residue]:
    """Those without an id that differ in nothing but their time as one, at its latest."""

    def alike(each: Residue) -> tuple[str, ...]:
        return (each.what, each.id or "", each.where, each.state, each.why, each.condition or "")

    for _, group in groupby(sorted(found, key=alike), key=alike):
        rows = list(group)
        times = [each.until for each in rows if each.until is not None]
        total = sum(each.count for each in rows)
        yield replace(rows[0], count=total, until=max(times, default=None))


def _used_by_jobs(session: Session, request: Request) -> Iterator[Residue]:
    """Copies that training jobs and comparisons make, and where a training would go on from."""
    using = (
        select(Job.state, Job.snapshot_key.is_not(None).label("has_snapshot"))
        .where(
            Job.model_id == request.model_id,
            Job.kind.in_(USING),
            Job.state.in_(UNFINISHED),
            or_(
                Job.base_checkpoint_id.in_(_holders(request)),
                *(Job.params["dataset_ids"].contains([each]) for each in request.dataset_ids),
            ),
        )
        .order_by(Job.id)
    )
    rows = session.execute(using).all()
    ends = "the job ends"
    if copies := sum(row.state in LIVE_STATES for row in rows):
        why = "a running job of the model uses the data"
        yield Residue("working-copy", WORKER, "in use", why, count=copies, condition=ends)
    if snapshots := sum(row.has_snapshot for row in rows):
        why = "a training that is interrupted goes on from it"
        yield Residue("snapshot", STORE, "in use", why, count=snapshots, condition=ends)


def _retrain_weights(session: Session, request: Request) -> Iterator[Residue]:
    """What comparisons trained on all but the data that they were about, kept for the next comparison."""
    about = Comparison.settings["dataset_ids"]
    trained = (
        select(Comparison.id)
        .join(Job, Job.id == Comparison.job_id)
        .join(Checkpoint, Checkpoint.id == Comparison.checkpoint_id)
        .where(
            Comparison.model_id == request.model_id,
            Comparison.settings["with_retrain"].as_boolean(),
            Job.started_at.is_not(None),
            Checkpoint.state.in_(retention.KEPT),
            Checkpoint.id.in_(_holders(request)),
            or_(*(~about.contains([each]) for each in request.dataset_ids)),
        )
    )
    if count := len(session.scalars(trained).all()):
        yield Residue(
            "retrain-weights",
            WORKER,
            "may exist",
            "comparisons of methods keep Retrain's weights for the next one on the same head",
            count=count,
            condition="the model has another head, and a training job or comparison on that "
            "machine ends",
        )


def _samples(session: Session, request: Request) -> Iterator[Residue]:
    rows = select(Dataset).where(Dataset.id.in_(request.dataset_ids)).order_by(Dataset.id)
    for row in session.scalars(rows.options(lazyload(Dataset.shards))):
        if row.state == DatasetState.DELETED:
            continue
        going = row.state == DatasetState.DELETING
        yield Residue(
            "raw-samples",
            STORE,
            "being deleted" if going else "kept",
            "its owner deleted it" if going else "its owner has not deleted it; audits need it",
            id=row.id,
            digest=row.digest,
            condition="the store confirms that it is gone" if going else "its owner deletes it",
        )


def _findings(session: Session, request: Request) -> Iterator[Residue]:
    goes = "a data set of the request is deleted"
    audits = select(Audit.id).where(Audit.request_id == request.id, Audit.objects.is_not(None))
    for audit_id in session.scalars(audits.order_by(Audit.id)):
        why = "matrices of outputs, and small pictures of the audited images"
        yield Residue("audit", STORE, "kept", why, id=audit_id, condition=goes)
    encodings = select(Encoding.id).where(
        Encoding.request_id == request.id,
        or_(Encoding.outputs_key.is_not(None), Encoding.views_key.is_not(None)),
    )
    for encoding_id in session.scalars(encodings.order_by(Encoding.id)):
        why = "outputs of the encoders for the samples, or views that were sent"
        yield Residue("encoding", STORE, "kept", why, id=encoding_id, condition=goes)


def _backups(session: Session) -> Iterator[Residue]:
    """The operator's backups, once there is one; they hold what was there when each was taken."""
    newest = session.scalar(
        select(LogRow.detail["keep_days"].as_float())
        .where(LogRow.subject_id == log.BACKUP, LogRow.event.in_((log.TAKEN, log.RESTORED)))
        .order_by(LogRow.seq.desc())
        .limit(1)
    )
    if newest is None:
        return
    yield Residue(
        what="backup",
        where="backups",
        state="may exist",
        why="backups hold what was there when they were taken, so that a lost service can be restored; "
        "a restore ends again what had ended",
        condition=f"the last backup before its end here is {newest:g} days old"
        if newest
        else "the operator removes the backups: no time is set",
    )
