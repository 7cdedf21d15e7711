"""Checkpoints: uploads, results of jobs, and which one is in force. Never touches weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from expunge.registry import (
    drift,
    exposure,
    idempotency,
    jobs,
    lineage,
    log,
    models,
    orphans,
    policies,
    retention,
    reviews,
    waiting,
)
from expunge.registry.errors import Conflict, NotFound
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import CheckpointState, RequestState
from expunge.registry.tables import (
    TRAINING_KINDS,
    Checkpoint,
    CheckpointDataset,
    Dataset,
    Job,
    JobKind,
    Model,
    Party,
)
from expunge.registry.transitions import move, move_requests


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A checkpoint's file and its releasable part, both in the object store already."""

    digest: str
    object_key: str
    bytes: int
    release_digest: str
    release_key: str


def add_upload(
    session: Session,
    owner: Party,
    model_id: str,
    dataset_ids: Sequence[str],
    weights: StoredWeights,
    *,
    idempotency_key: str | None = None,
) -> Checkpoint:
    """Record an uploaded checkpoint and have a worker check it against its header.

    With the key and content of an earlier call, the answer is that call's checkpoint.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound, NotSealed, Invalid, AlreadyForgotten: as training on these data sets would.
        ObjectRemoved: recording took so long that the objects are gone.
    """
    checkpoint_id = new_id(Prefix.CHECKPOINT)
    call = idempotency.Call(
        owner.id,
        idempotency_key,
        "upload-checkpoint",
        _upload_content(model_id, dataset_ids, weights.digest),
    )
    if earlier := idempotency.remember(session, call, checkpoint_id):
        return session.get_one(Checkpoint, earlier)
    model = models.owned(session, owner, model_id)
    models.check_training_data(session, owner, model, dataset_ids)
    checkpoint = _add(
        session, model.id, weights, CheckpointState.CHECKING, checkpoint_id=checkpoint_id
    )
    _note_datasets(session, checkpoint, dict.fromkeys(dataset_ids, False))
    log.append(session, owner.id, checkpoint.id, "uploaded", digest=weights.digest)
    waiting.enqueue(
        session,
        JobKind.VERIFY,
        actor=owner.id,
        owner_id=owner.id,
        params={},
        checkpoint_id=checkpoint.id,
    )
    return checkpoint


def uploaded_before(
    session: Session,
    owner: Party,
    model_id: str,
    dataset_ids: Sequence[str],
    digest: str,
    *,
    idempotency_key: str | None,
) -> Checkpoint | None:
    """What an earlier upload with this key made, known before the body is received again.

    Raises:
        IdempotencyConflict: the key was used with other content.
    """
    call = idempotency.Call(
        owner.id,
        idempotency_key,
        "upload-checkpoint",
        _upload_content(model_id, dataset_ids, digest),
    )
    earlier = idempotency.recall(session, call)
    return None if earlier is None else session.get_one(Checkpoint, earlier)


def _upload_content(model_id: str, dataset_ids: Sequence[str], digest: str) -> list[Any]:
    return [model_id, sorted(dataset_ids), digest]


def record_verified(session: Session, lease: jobs.Lease, problem: dict[str, Any] | None) -> None:
    """End a verify job: the upload is ready (and the model's head if it has none), or invalid.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = jobs.succeed(session, lease)
    checkpoint = session.get_one(Checkpoint, job.checkpoint_id)
    if problem is not None:
        move(session, checkpoint, CheckpointState.INVALID, problem=problem)
        return
    move(session, checkpoint, CheckpointState.READY)
    model = session.get_one(Model, checkpoint.model_id, with_for_update=True)
    if model.head_checkpoint_id is None:
        _set_head(session, model, checkpoint, log.SERVICE)


def record_pretrained(
    session: Session, lease: jobs.Lease, weights: StoredWeights, metrics: dict[str, Any]
) -> Checkpoint:
    """End a pre-training job with its checkpoint; it becomes the head if the policy says so.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = session.get_one(Job, lease.job_id)
    model = session.get_one(Model, job.model_id, with_for_update=True)
    checkpoint = _add(session, model.id, weights, CheckpointState.READY, job_id=job.id)
    _note_datasets(session, checkpoint, dict.fromkeys(job.params["dataset_ids"], False))
    jobs.succeed(session, lease, metrics=metrics, result_checkpoint_id=checkpoint.id)
    log.append(session, log.SERVICE, checkpoint.id, "trained", digest=weights.digest)
    if model.head_checkpoint_id is None or policies.of(model.policy).promotion == "automatic":
        _set_head(session, model, checkpoint, log.SERVICE)
    return checkpoint


def record_unlearned(
    session: Session, lease: jobs.Lease, weights: StoredWeights, metrics: dict[str, Any]
) -> Checkpoint:
    """End an unlearning job: its checkpoint, its requests completed, promoted if the policy says so.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = session.get_one(Job, lease.job_id)
    model = session.get_one(Model, job.model_id, with_for_update=True)
    base = session.get_one(Checkpoint, job.base_checkpoint_id)
    forgotten = {each for request in job.requests for each in request.dataset_ids}
    forgotten |= set(lineage.owed(session, base))
    checkpoint = _add(
        session,
        model.id,
        weights,
        CheckpointState.READY,
        parent_id=base.id,
        job_id=job.id,
        drift=drift.after(session, base, metrics, forgotten & set(base.retained)),
    )
    forgotten |= set(base.forgotten)
    _note_datasets(session, checkpoint, {each: each in forgotten for each in base.trained_on})
    jobs.succeed(session, lease, metrics=metrics, result_checkpoint_id=checkpoint.id)
    log.append(session, log.SERVICE, checkpoint.id, "unlearned", digest=weights.digest)
    move_requests(session, job, RequestState.COMPLETED, detail=_compared(base, checkpoint))
    reviews.after_removal(session, job)
    # Some of them may be about data that a newly trained head never held.
    exposure.end(session, model.id, str(model.head_checkpoint_id), actor=log.SERVICE)
    _promote_by_policy(session, model, checkpoint)
    return checkpoint


def _compared(before: Checkpoint, after: Checkpoint) -> dict[str, str]:
    """What audits of the job's requests compare, fixed in the log before anybody can ask."""
    return {
        "before_checkpoint_id": before.id,
        "before_digest": before.digest,
        "after_checkpoint_id": after.id,
        "after_digest": after.digest,
    }


def _promote_by_policy(session: Session, model: Model, checkpoint: Checkpoint) -> None:
    """Put a result in force if the policy says so, of every step since the head that waits with it."""
    policy = policies.of(model.policy)
    if policy.promotion == "manual":
        return
    steps = lineage.since(session, checkpoint, model.head_checkpoint_id)
    if not steps:
        return
    against = []
    for step in steps:
        found = policies.objections(policy, _metrics(session, step))
        if found and step is not checkpoint:
            _withhold(session, step, found)
        against += found
    if against:
        _withhold(session, checkpoint, against)
    else:
        _set_head(session, model, checkpoint, log.SERVICE)


def _withhold(session: Session, checkpoint: Checkpoint, reasons: list[str]) -> None:
    checkpoint.problem = {"code": "promotion-withheld", "detail": "; ".join(reasons)}
    log.append(session, log.SERVICE, checkpoint.id, "promotion-withheld", reasons=reasons)


def _metrics(session: Session, checkpoint: Checkpoint) -> dict[str, Any]:
    return session.get_one(Job, checkpoint.job_id).metrics or {}


def promote(session: Session, owner: Party, checkpoint_id: str) -> Model:
    """Make a checkpoint its model's head.

    Raises:
        NotFound: not a checkpoint of an own model.
        CheckpointDestroyed: its weights are gone.
        Conflict: it is not ready, it holds data that was forgotten on request or whose owner
            deleted it, or a job of the model is running, whose result belongs to the present head.
    """
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None:
        raise NotFound.of("checkpoint", checkpoint_id)
    try:
        model = models.owned(session, owner, checkpoint.model_id)
    except NotFound as error:
        raise NotFound.of("checkpoint", checkpoint_id) from error
    # It may have been destroyed, or an owner be deleting what it holds, until the model's row was had.
    session.refresh(checkpoint)
    retention.locked(session, Dataset, checkpoint.retained)
    if refusal := objection(session, checkpoint):
        raise refusal
    _set_head(session, model, checkpoint, owner.id)
    return model


def objection(session: Session, checkpoint: Checkpoint) -> Conflict | None:
    """Why the checkpoint cannot become its model's head now; what lasts before what passes."""
    if gone := retention.destroyed(checkpoint):
        return gone
    if checkpoint.state != CheckpointState.READY:
        return Conflict(
            f"Checkpoint {checkpoint.id} is {checkpoint.state}.", state=checkpoint.state
        )
    if back := lineage.owed(session, checkpoint):
        return Conflict(
            f"Checkpoint {checkpoint.id} still holds data that was forgotten on request: "
            f"{', '.join(back)}.",
            dataset_ids=back,
        )
    if lost := retention.deleted_among(session, checkpoint.retained):
        return Conflict(
            f"Checkpoint {checkpoint.id} holds data that its owner deleted: {', '.join(lost)}. No "
            "removal could be carried out from it.",
            dataset_ids=lost,
        )
    if session.scalar(
        select(Job.id).where(
            Job.model_id == checkpoint.model_id,
            Job.state.in_(jobs.LIVE_STATES),
            Job.kind.in_(TRAINING_KINDS),
        )
    ):
        return Conflict(
            f"A job of model {checkpoint.model_id} is running; promote when it has ended."
        )
    return None


def _set_head(session: Session, model: Model, checkpoint: Checkpoint, actor: str) -> None:
    """Put a checkpoint in force, and with it the requests whose data it has forgotten or never held."""
    before = model.head_checkpoint_id
    model.head_checkpoint_id = checkpoint.id
    checkpoint.promoted_at = checkpoint.promoted_at or func.now()
    session.flush()
    session.refresh(checkpoint)
    log.append(
        session, actor, model.id, "promoted", checkpoint_id=checkpoint.id, previous_id=before
    )
    exposure.end(session, model.id, checkpoint.id, actor=actor)
    reviews.under_new_head(session, model, checkpoint.id)


def _add(
    session: Session,
    model_id: str,
    weights: StoredWeights,
    state: CheckpointState,
    *,
    checkpoint_id: str | None = None,
    **values: Any,
) -> Checkpoint:
    checkpoint = Checkpoint(
        id=checkpoint_id or new_id(Prefix.CHECKPOINT),
        model_id=model_id,
        state=state,
        **asdict(weights),
        **values,
    )
    session.add(checkpoint)
    session.flush()
    orphans.named(session, [weights.object_key, weights.release_key])
    return checkpoint


def _note_datasets(session: Session, checkpoint: Checkpoint, forgotten: dict[str, bool]) -> None:
    session.add_all(
        CheckpointDataset(checkpoint_id=checkpoint.id, dataset_id=each, forgotten=is_forgotten)
        for each, is_forgotten in forgotten.items()
    )
    session.flush()
    session.expire(checkpoint, ["datasets"])
