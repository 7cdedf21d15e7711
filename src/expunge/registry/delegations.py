"""Delegations: a data owner lets an auditor audit some of the owner's data sets, until a day or until withdrawn."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from expunge.registry import idempotency, log
from expunge.registry.errors import Invalid, NotFound, NotSealed
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import DatasetState
from expunge.registry.tables import Dataset, Delegation, DelegationDataset, Party, Role

LONGEST = timedelta(days=366)


def create(
    session: Session,
    owner: Party,
    *,
    auditor_id: str,
    dataset_ids: Sequence[str],
    expires_at: datetime,
    idempotency_key: str | None = None,
) -> Delegation:
    """Let an auditor see and audit own, sealed data sets until `expires_at`, at most a year ahead.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound: no such auditor, or a data set is not an own one.
        NotSealed: a data set is not sealed.
        Invalid: it ends in the past or after more than a year.
    """
    delegation_id = new_id(Prefix.DELEGATION)
    chosen = sorted(set(dataset_ids))
    content = [auditor_id, chosen, expires_at.isoformat()]
    call = idempotency.Call(owner.id, idempotency_key, "create-delegation", content)
    if earlier := idempotency.remember(session, call, delegation_id):
        return session.get_one(Delegation, earlier)
    _check_end(expires_at)
    auditor = select(Party.id).where(Party.id == auditor_id, Party.role == Role.AUDITOR)
    if session.scalar(auditor) is None:
        raise NotFound.of("auditor", auditor_id)
    _check_datasets(session, owner, chosen)
    row = Delegation(
        id=delegation_id,
        owner_id=owner.id,
        auditor_id=auditor_id,
        expires_at=expires_at,
        datasets=[DelegationDataset(dataset_id=each) for each in chosen],
    )
    session.add(row)
    session.flush()
    log.append(
        session,
        owner.id,
        row.id,
        "delegated",
        auditor_id=auditor_id,
        dataset_ids=chosen,
        expires_at=expires_at.isoformat(),
    )
    return row


def _check_end(expires_at: datetime) -> None:
    now = datetime.now(UTC)
    if not now < expires_at <= now + LONGEST:
        raise Invalid(
            "A delegation ends within a year from now.",
            allowed={"after": now.isoformat(), "until": (now + LONGEST).isoformat()},
        )


def _check_datasets(session: Session, owner: Party, chosen: Sequence[str]) -> None:
    found = {
        row.id: row.state
        for row in session.scalars(
            select(Dataset).where(Dataset.id.in_(chosen), Dataset.owner_id == owner.id)
        )
    }
    if missing := [each for each in chosen if each not in found]:
        raise NotFound.of("data set", missing)
    if unsealed := [each for each in chosen if found[each] != DatasetState.SEALED]:
        raise NotSealed(f"Not sealed yet: {', '.join(unsealed)}.", dataset_ids=unsealed)


def withdraw(session: Session, owner: Party, delegation_id: str) -> None:
    """End an own delegation now; one that was withdrawn before is left as it is.

    Raises:
        NotFound: not an own delegation.
    """
    row = session.scalar(
        select(Delegation)
        .where(Delegation.id == delegation_id, Delegation.owner_id == owner.id)
        .with_for_update()
    )
    if row is None:
        raise NotFound.of("delegation", delegation_id)
    if row.withdrawn_at is None:
        row.withdrawn_at = func.now()
        log.append(session, owner.id, row.id, "withdrawn")
