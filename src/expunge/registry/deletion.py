"""An owner deletes a data set for good: what holds it back, and what begins once nothing does.

Never touches a store: the objects are unnamed here, and end in `destruction`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Select, delete, or_, select
from sqlalchemy.orm import Session

from expunge.registry import datasets, destruction, direct_uploads, lineage, log, references
from expunge.registry.errors import DatasetInUse
from expunge.registry.lifecycles import DatasetState
from expunge.registry.tables import (
    Audit,
    CheckpointDataset,
    Comparison,
    Dataset,
    Encoding,
    Grant,
    Job,
    JobKind,
    Model,
    Party,
    Request,
    RequestDataset,
    Shard,
)
from expunge.registry.transitions import move


@dataclass(frozen=True, slots=True)
class Holder:
    """What needs a data set, as its owner may know it, and what would change that."""

    what: Literal["model", "control", "request", "job", "audit", "encoding", "sealing"]
    id: str | None
    why: str


def start(session: Session, owner: Party, dataset_id: str) -> Dataset:
    """Take back consent, name and samples of an own data set; its row stays, with digest and counts.

    Pictures and outputs of audits of it go with it, and there can be no further ones. Doing so
    again changes nothing.

    Raises:
        NotFound: not an own data set.
        DatasetInUse: something needs it; the error says what.
    """
    datasets.owned(session, owner, dataset_id)
    # Models before data sets: the order in which promotion locks them.
    controlled = session.scalars(
        select(Model)
        .where(Model.control_dataset_id == dataset_id)
        .order_by(Model.id)
        .with_for_update(key_share=True)
    ).all()
    dataset = datasets.owned(session, owner, dataset_id, lock=True)
    if dataset.state in (DatasetState.DELETING, DatasetState.DELETED):
        return dataset
    if held_by := list(_holders(session, dataset)):
        raise DatasetInUse(
            f"Data set {dataset.id} is needed: {'; '.join(each.why for each in held_by)}.",
            held_by=[asdict(each) for each in held_by],
        )
    keys = [*_unname_findings(session, dataset), *(each.object_key for each in dataset.shards)]
    keys += direct_uploads.give_up(session, dataset)
    destruction.doom(
        session, dataset.id, keys if dataset.index_key is None else [*keys, dataset.index_key]
    )
    for model in controlled:
        model.control_dataset_id = None
        log.append(session, log.SERVICE, model.id, "control-removed", dataset_id=dataset.id)
    for table in (Shard, Grant):
        session.execute(delete(table).where(table.dataset_id == dataset.id))
    move(
        session,
        dataset,
        DatasetState.DELETING,
        actor=owner.id,
        name="",
        problem=None,
        index_key=None,
    )
    session.expire(dataset, ["shards", "grants"])
    return dataset


def _unname_findings(session: Session, dataset: Dataset) -> Iterator[str]:
    """The keys of pictures and outputs of every audit and encoding of a request about the data set."""
    about = select(RequestDataset.request_id).where(RequestDataset.dataset_id == dataset.id)
    audits = select(Audit).where(Audit.request_id.in_(about), Audit.objects.is_not(None))
    for audit in session.scalars(audits):
        yield from references.keys_in(audit.objects)
        audit.objects = None
    for encoding in session.scalars(select(Encoding).where(Encoding.request_id.in_(about))):
        yield from (key for key in (encoding.outputs_key, encoding.views_key) if key is not None)
        encoding.outputs_key = encoding.views_key = None


def _holders(session: Session, dataset: Dataset) -> Iterator[Holder]:
    if dataset.state == DatasetState.SEALING:
        yield Holder("sealing", None, "it is being sealed, which ends by itself")
    for model_id in session.scalars(_heads(dataset)):
        yield Holder("model", model_id, f"model {model_id} holds it: ask it to forget first")
    for model_id in session.scalars(_controls(dataset)):
        yield Holder("control", model_id, f"it is the control of model {model_id}: {_INSTEAD}")
    for request_id in session.scalars(_requests(dataset)):
        yield Holder("request", request_id, f"request {request_id} has not ended")
    if session.scalar(_jobs(dataset).limit(1)) is not None:
        yield Holder(
            "job", None, "a job that uses it has not ended; withdrawn grants keep others away"
        )
    # A review's audit is over before the review, which goes on for requests of others.
    for audit_id in session.scalars(_asked(Audit, dataset).where(Audit.settled_at.is_(None))):
        yield Holder("audit", audit_id, f"audit {audit_id} has not ended")
    for encoding_id in session.scalars(_asked(Encoding, dataset)):
        yield Holder("encoding", encoding_id, f"encoding {encoding_id} has not ended")


_INSTEAD = "its owner has to name another one, or you to withdraw the grant"


def _holding(dataset: Dataset) -> Select[str]:
    """Ids of the checkpoints that hold the data set."""
    return select(CheckpointDataset.checkpoint_id).where(
        CheckpointDataset.dataset_id == dataset.id, ~CheckpointDataset.forgotten
    )


def _heads(dataset: Dataset) -> Select[str]:
    holding = Model.head_checkpoint_id.in_(_holding(dataset))
    return select(Model.id).where(holding).order_by(Model.id)


def _controls(dataset: Dataset) -> Select[str]:
    """Models whose owner may use it: one who was granted it loses it with the grant."""
    granted = select(Grant.party_id).where(Grant.dataset_id == dataset.id)
    return (
        select(Model.id)
        .where(
            Model.control_dataset_id == dataset.id,
            or_(Model.owner_id == dataset.owner_id, Model.owner_id.in_(granted)),
        )
        .order_by(Model.id)
    )


def _requests(dataset: Dataset) -> Select[str]:
    return (
        select(Request.id)
        .join(RequestDataset, RequestDataset.request_id == Request.id)
        .where(RequestDataset.dataset_id == dataset.id, Request.state.in_(lineage.UNFINISHED))
        .order_by(Request.id)
    )


def _jobs(dataset: Dataset) -> Select[str]:
    """Trainings on it, removals and comparisons whose base holds it, checks of uploads that hold it.

    And comparisons that test on it, which keep a copy.
    """
    trains = (Job.kind == JobKind.PRETRAIN) & Job.params["dataset_ids"].contains([dataset.id])
    bases = _holding(dataset)
    testing = select(Comparison.job_id).where(
        Comparison.settings["control_dataset_id"].astext == dataset.id
    )
    return select(Job.id).where(
        Job.state.in_(references.UNFINISHED),
        or_(
            trains,
            Job.base_checkpoint_id.in_(bases),
            Job.checkpoint_id.in_(bases),
            Job.id.in_(testing),
        ),
    )


def _asked(table: type[Audit] | type[Encoding], dataset: Dataset) -> Select[str]:
    about = select(RequestDataset.request_id).where(RequestDataset.dataset_id == dataset.id)
    return (
        select(table.id)
        .join(Job, Job.id == table.job_id)
        .where(table.request_id.in_(about), Job.state.in_(references.UNFINISHED))
        .order_by(table.id)
    )
