"""What has ended for good and must not come back with a backup that was taken before: noted, and ended again.

Data sets that were deleted, checkpoints that were destroyed, keys that were revoked or ran out (when
they were rotated, say), delegations and grants that were withdrawn. Holds ids and times, nothing of their content.
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from expunge.registry import deletion, log, retention
from expunge.registry.backup import archive
from expunge.registry.backup.archive import Archive, BackupRefused
from expunge.registry.database import Sessions
from expunge.registry.errors import Conflict
from expunge.registry.lifecycles import CheckpointState, DatasetState
from expunge.registry.tables import ApiKey, Checkpoint, Dataset, Delegation, Grant, LogRow, Party

AGAIN = "it had ended before the service was restored from a backup"
WITHDRAWN = "grant-withdrawn"
"""The event of a data set: a party may not train on it any more."""


class WithdrawnGrant(BaseModel):
    """A grant, and when it was withdrawn."""

    model_config = ConfigDict(frozen=True)

    dataset_id: str
    party_id: str
    at: datetime


class Endings(BaseModel):
    """Ids of what has ended."""

    model_config = ConfigDict(frozen=True)

    datasets: frozenset[str] = frozenset()
    checkpoints: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    delegations: frozenset[str] = frozenset()
    grants: frozenset[WithdrawnGrant] = frozenset()

    def with_those_of(self, other: "Endings") -> "Endings":
        """Both: what has ended once stays ended."""
        return Endings(
            datasets=self.datasets | other.datasets,
            checkpoints=self.checkpoints | other.checkpoints,
            keys=self.keys | other.keys,
            delegations=self.delegations | other.delegations,
            grants=self.grants | other.grants,
        )


def read(kept: Archive) -> Endings:
    """What the folder's note says; nothing where there is none.

    Raises:
        BackupRefused: it cannot be read.
    """
    try:
        return Endings.model_validate_json(kept.endings.read_bytes())
    except FileNotFoundError:
        return Endings()
    except ValueError as error:
        raise BackupRefused(f"{kept.endings} cannot be read: {error}") from error


def note(sessions: Sessions, kept: Archive) -> Endings:
    """Add what has ended until now to the folder's note; quick, and possible while a backup runs.

    Raises:
        BackupRefused: the note that is there cannot be read, or somebody writes it for long.
    """
    with kept.noting():
        with sessions() as session:
            found = read(kept).with_those_of(_now(session))
        archive.replace(kept.endings, found.model_dump_json(indent=1).encode())
    return found


def _now(session: Session) -> Endings:
    deleted = Dataset.state.in_((DatasetState.DELETING, DatasetState.DELETED))
    destroyed = Checkpoint.state.in_((CheckpointState.DESTROYING, CheckpointState.DESTROYED))
    withdrawn = select(LogRow.subject_id, LogRow.detail["party_id"].astext, LogRow.at).where(
        LogRow.event == WITHDRAWN
    )
    return Endings(
        datasets=frozenset(session.scalars(select(Dataset.id).where(deleted))),
        checkpoints=frozenset(session.scalars(select(Checkpoint.id).where(destroyed))),
        keys=frozenset(
            session.scalars(
                select(ApiKey.id).where(
                    or_(ApiKey.revoked_at.is_not(None), ApiKey.expires_at <= func.now())
                )
            )
        ),
        delegations=frozenset(
            session.scalars(select(Delegation.id).where(Delegation.withdrawn_at.is_not(None)))
        ),
        grants=frozenset(
            WithdrawnGrant(dataset_id=dataset_id, party_id=party_id, at=at)
            for dataset_id, party_id, at in session.execute(withdrawn)
        ),
    )


def again(sessions: Sessions, ended: Endings) -> dict[str, str]:
    """End all of it again; what something needs now, and why, by its id: that is for its owner to end.

    The objects go with the next sweep.
    """
    with sessions.begin() as session:
        _revoke(session, ended)
        _withdraw(session, ended)
    held: dict[str, str] = {}
    for dataset_id in sorted(ended.datasets):
        try:
            with sessions.begin() as session:
                _delete(session, dataset_id)
        except Conflict as error:
            held[dataset_id] = str(error)
    for checkpoint_id in sorted(ended.checkpoints):
        with sessions.begin() as session:
            if not retention.end(session, checkpoint_id, AGAIN):
                held[checkpoint_id] = "it is in force, or work that has not ended needs it"
    return held


def _delete(session: Session, dataset_id: str) -> None:
    dataset = session.get(Dataset, dataset_id)
    if dataset is not None:
        deletion.start(session, session.get_one(Party, dataset.owner_id), dataset_id)


def _revoke(session: Session, ended: Endings) -> None:
    revoked = session.scalars(
        update(ApiKey)
        .where(
            ApiKey.id.in_(ended.keys),
            ApiKey.revoked_at.is_(None),
            func.coalesce(ApiKey.expires_at > func.now(), True),
        )
        .values(revoked_at=func.now())
        .returning(ApiKey.id)
    ).all()
    log.append_each(session, log.SERVICE, sorted(revoked), "revoked", reason=AGAIN)


def _withdraw(session: Session, ended: Endings) -> None:
    withdrawn = session.scalars(
        update(Delegation)
        .where(Delegation.id.in_(ended.delegations), Delegation.withdrawn_at.is_(None))
        .values(withdrawn_at=func.now())
        .returning(Delegation.id)
    ).all()
    log.append_each(session, log.SERVICE, sorted(withdrawn), "withdrawn", reason=AGAIN)
    for grant in sorted(ended.grants, key=lambda each: each.at):
        gone = session.scalar(
            delete(Grant)
            .where(
                Grant.dataset_id == grant.dataset_id,
                Grant.party_id == grant.party_id,
                # It may have been granted anew.
                Grant.created_at <= grant.at,
            )
            .returning(Grant.dataset_id)
        )
        if gone is not None:
            told = {"party_id": grant.party_id, "reason": AGAIN}
            log.append(session, log.SERVICE, grant.dataset_id, WITHDRAWN, **told)
