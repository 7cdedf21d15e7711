"""Who may see which rows, written once per table. Every read on behalf of a party starts here."""

from typing import Any, TypeVar

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from expunge.registry.errors import NotFound
from expunge.registry.tables import (
    TRAINING_KINDS,
    Audit,
    Checkpoint,
    CheckpointDataset,
    Comparison,
    Dataset,
    Grant,
    Job,
    Model,
    Party,
    Request,
    Role,
)

Row = TypeVar("Row", Party, Dataset, Model, Checkpoint, Request, Job, Audit, Comparison)


def parties(operator: Party) -> Select[Party]:
    """Everybody, for an operator; else oneself."""
    everybody = select(Party)
    return everybody if operator.role == Role.OPERATOR else everybody.where(Party.id == operator.id)


def datasets(party: Party) -> Select[Dataset]:
    """Own data sets, and those whose owner granted training to the party."""
    granted = select(Grant.dataset_id).where(Grant.party_id == party.id)
    return select(Dataset).where(or_(Dataset.owner_id == party.id, Dataset.id.in_(granted)))


def models(party: Party) -> Select[Model]:
    """Own models, and those that were trained on data of the party."""
    trained = (
        select(Checkpoint.model_id)
        .join(CheckpointDataset, CheckpointDataset.checkpoint_id == Checkpoint.id)
        .join(Dataset, Dataset.id == CheckpointDataset.dataset_id)
        .where(Dataset.owner_id == party.id)
    )
    return select(Model).where(or_(Model.owner_id == party.id, Model.id.in_(trained)))


def own_models(party: Party) -> Select[Model]:
    """Own models only."""
    return select(Model).where(Model.owner_id == party.id)


def checkpoints(party: Party) -> Select[Checkpoint]:
    """Checkpoints of own models."""
    return select(Checkpoint).where(Checkpoint.model_id.in_(_own_models(party)))


def requests(party: Party) -> Select[Request]:
    """Own requests, and those that others make to own models."""
    return select(Request).where(
        or_(Request.owner_id == party.id, Request.model_id.in_(_own_models(party)))
    )


def jobs(party: Party) -> Select[Job]:
    """Training jobs of own models."""
    return select(Job).where(Job.model_id.in_(_own_models(party)), Job.kind.in_(TRAINING_KINDS))


def audits(party: Party) -> Select[Audit]:
    """Own audits."""
    return select(Audit).where(Audit.owner_id == party.id)


def comparisons(party: Party) -> Select[Comparison]:
    """Own comparisons."""
    return select(Comparison).where(Comparison.owner_id == party.id)


def one(session: Session, readable: Select[Row], row_id: str) -> Row:
    """The row of that id among the readable ones.

    Raises:
        NotFound: there is none, or it belongs to another party.
    """
    table: Any = readable.column_descriptions[0]["entity"]
    row = session.scalar(readable.where(table.id == row_id))
    if row is None:
        raise NotFound.of(KIND[table], row_id)
    return row


KIND: dict[type, str] = {
    Party: "party",
    Dataset: "data set",
    Model: "model",
    Checkpoint: "checkpoint",
    Request: "request",
    Job: "job",
    Audit: "audit",
    Comparison: "comparison",
}


def _own_models(party: Party) -> Select[str]:
    return select(Model.id).where(Model.owner_id == party.id)
