"""Who may see which rows, written once per table. Every read on behalf of a party starts here."""

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import (
    CompoundSelect,
    Select,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    union,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from expunge.registry import log
from expunge.registry.access import Reader, delegated_datasets
from expunge.registry.errors import NotFound
from expunge.registry.tables import (
    TRAINING_KINDS,
    Alert,
    ApiKey,
    Audit,
    Checkpoint,
    CheckpointDataset,
    Comparison,
    Dataset,
    Delegation,
    Encoding,
    Grant,
    Job,
    JobKind,
    LogRow,
    Model,
    Party,
    Request,
    RequestDataset,
    Role,
    SigningKey,
)

CONSENTS = ("granted", "grant-withdrawn")
"""Events of a data set that concern whom its owner names."""
OBJECTS = "objects"
"""Subject of what sweeps of the object store remove."""

Row = TypeVar(
    "Row",
    Party,
    Dataset,
    Model,
    Checkpoint,
    Request,
    Job,
    Audit,
    Alert,
    Comparison,
    Delegation,
    Encoding,
    ApiKey,
)


def parties(operator: Party) -> Select[Party]:
    """Everybody, for an operator; else oneself."""
    everybody = select(Party)
    return everybody if operator.role == Role.OPERATOR else everybody.where(Party.id == operator.id)


def keys(party: Party) -> Select[ApiKey]:
    """Own keys; everybody's, for an operator."""
    everybodys = select(ApiKey)
    return (
        everybodys if party.role == Role.OPERATOR else everybodys.where(ApiKey.party_id == party.id)
    )


def datasets(party: Party) -> Select[Dataset]:
    """Own data sets, those whose owner granted training to the party, and those delegated to it."""
    granted = select(Grant.dataset_id).where(Grant.party_id == party.id)
    return select(Dataset).where(
        or_(
            Dataset.owner_id == party.id,
            Dataset.id.in_(granted),
            Dataset.id.in_(delegated_datasets(party)),
        )
    )


def sampled_datasets(party: Party) -> Select[Dataset]:
    """Data sets whose samples the party may read about: own ones, and those delegated to it."""
    return select(Dataset).where(
        or_(Dataset.owner_id == party.id, Dataset.id.in_(delegated_datasets(party)))
    )


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


def requests(party: Reader) -> Select[Request]:
    """Own requests, those that others make to own models, and those about data sets delegated to the party."""
    covering = select(RequestDataset.request_id).where(
        RequestDataset.dataset_id.in_(delegated_datasets(party))
    )
    return select(Request).where(
        or_(
            Request.owner_id == party.id,
            Request.model_id.in_(_own_models(party)),
            Request.id.in_(covering),
        )
    )


def jobs(party: Reader) -> Select[Job]:
    """Training jobs of own models."""
    return select(Job).where(Job.model_id.in_(_own_models(party)), Job.kind.in_(TRAINING_KINDS))


def audits(party: Party) -> Select[Audit]:
    """Audits of own requests, whoever asked; and those that the party asked for while all of it is delegated."""
    return select(Audit).where(
        or_(
            Audit.owner_id == party.id,
            and_(Audit.party_id == party.id, Audit.job_id.in_(_jobs_about_delegated(party))),
        )
    )


def encodings(party: Party) -> Select[Encoding]:
    """Encodings of own requests, whoever asked; and those that the party asked for while all of it is delegated."""
    return select(Encoding).where(
        or_(
            Encoding.owner_id == party.id,
            and_(Encoding.party_id == party.id, Encoding.job_id.in_(_jobs_about_delegated(party))),
        )
    )


def delegations(party: Party) -> Select[Delegation]:
    """Delegations by the party and to it, those that have ended too."""
    return select(Delegation).where(
        or_(Delegation.owner_id == party.id, Delegation.auditor_id == party.id)
    )


def alerts(party: Party) -> Select[Alert]:
    """Those about requests that the party may see."""
    return select(Alert).where(Alert.request_id.in_(requests(party).with_only_columns(Request.id)))


def comparisons(party: Party) -> Select[Comparison]:
    """Own comparisons."""
    return select(Comparison).where(Comparison.owner_id == party.id)


def log_rows(party: Party) -> Select[LogRow]:
    """What the party did, and what happened to its own: whole rows, so nothing of the jobs that it shares.

    A model owner also reads which consents to train on data it was given, an operator who holds
    keys and what the service does with its objects, everybody which keys the service signs with. An
    auditor reads of requests all of whose data are delegated, and there what their owner, the
    service or itself did: rows are whole, so those of others would name data sets and parties.
    """
    about = select(LogRow.seq).where(LogRow.subject_id.in_(_log_subjects(party)))
    granted = select(LogRow.seq).where(
        LogRow.subject_id.in_(_granted_datasets(party)),
        LogRow.event.in_(CONSENTS),
        LogRow.detail["party_id"].astext == party.id,
    )
    done = select(LogRow.seq).where(LogRow.actor == party.id)
    parts = [done, about, granted]
    if party.role == Role.AUDITOR:
        parts.append(_log_of_delegated(party))
    return select(LogRow).where(LogRow.seq.in_(union(*parts)))


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


@dataclass(frozen=True)
class _Anyone:
    """Every reader: the parameter `reader_id` says who."""

    id: Any


ANYONE: Final[Reader] = _Anyone(bindparam("reader_id"))


class Lookup(Generic[Row]):
    """`one`, over and over: its statement is built once, which takes longer than running it.

    `readable` is what ANYONE may see.
    """

    def __init__(self, readable: Select[Row]) -> None:
        table: Any = readable.column_descriptions[0]["entity"]
        self._kind = KIND[table]
        self._statement: Select[Row] = readable.where(table.id == bindparam("row_id"))

    def one(self, session: Session, party: Party, row_id: str) -> Row:
        """The row of that id among those that the party may see.

        Raises:
            NotFound: there is none, or it belongs to another party.
        """
        row: Row | None = session.scalar(self._statement, {"reader_id": party.id, "row_id": row_id})
        if row is None:
            raise NotFound.of(self._kind, row_id)
        return row


KIND: dict[type, str] = {
    Party: "party",
    Dataset: "data set",
    Model: "model",
    Checkpoint: "checkpoint",
    Request: "request",
    Job: "job",
    Audit: "audit",
    Alert: "alert",
    Comparison: "comparison",
    Delegation: "delegation",
    Encoding: "encoding",
    ApiKey: "key",
}


def _own_models(party: Reader) -> Select[str]:
    return select(Model.id).where(Model.owner_id == party.id)


def _jobs_about_delegated(party: Party) -> Select[str]:
    """Jobs all of whose data sets are delegated to the party now."""
    delegated = delegated_datasets(party).subquery()
    ids = func.coalesce(func.jsonb_agg(delegated.c.dataset_id), cast("[]", JSONB))
    return select(Job.id).where(
        Job.params["dataset_ids"].op("<@")(select(ids).scalar_subquery()),
        Job.kind.in_((JobKind.AUDIT, JobKind.ENCODE)),
    )


def _log_of_delegated(auditor: Party) -> Select[int]:
    """Rows that name nothing but what is delegated: of requests that hold nothing else, and not by third parties."""
    delegated = delegated_datasets(auditor)
    of_request = RequestDataset.request_id == Request.id
    return (
        select(LogRow.seq)
        .join(Request, Request.id == LogRow.subject_id)
        .where(
            exists().where(of_request, RequestDataset.dataset_id.in_(delegated)),
            ~exists().where(of_request, RequestDataset.dataset_id.not_in(delegated)),
            or_(LogRow.actor.in_((log.SERVICE, auditor.id)), LogRow.actor == Request.owner_id),
        )
    )


def _log_subjects(party: Party) -> CompoundSelect[str]:
    """Ids of whatever has rows in the log that the party may read completely."""
    operated = () if party.role != Role.OPERATOR else (select(literal(OBJECTS)),)
    shared = (
        () if party.role == Role.AUDITOR else ((Request, requests(party)), (Alert, alerts(party)))
    )
    return union_all(
        select(SigningKey.id),
        keys(party).with_only_columns(ApiKey.id),
        *operated,
        parties(party).with_only_columns(Party.id),
        select(Dataset.id).where(Dataset.owner_id == party.id),
        _own_models(party),
        *(
            readable.with_only_columns(table.id)
            for table, readable in (
                (Checkpoint, checkpoints(party)),
                (Job, jobs(party)),
                (Audit, audits(party)),
                (Encoding, encodings(party)),
                (Comparison, comparisons(party)),
                (Delegation, delegations(party)),
                *shared,
            )
        ),
        comparisons(party).with_only_columns(Comparison.job_id),
    )


def _granted_datasets(party: Party) -> CompoundSelect[str]:
    """Data sets that were the party's to train on, now or when its models were trained."""
    return union(
        select(Grant.dataset_id).where(Grant.party_id == party.id),
        select(CheckpointDataset.dataset_id)
        .join(Checkpoint, Checkpoint.id == CheckpointDataset.checkpoint_id)
        .where(Checkpoint.model_id.in_(_own_models(party))),
    )
