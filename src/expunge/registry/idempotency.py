"""Calls that create something and may be repeated: the same key and content give the same resource."""

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.registry.errors import IdempotencyConflict
from expunge.registry.tables import IdempotencyKey

CallName = Literal[
    "create-party",
    "issue-key",
    "rotate-key",
    "create-dataset",
    "create-model",
    "pretrain",
    "upload-checkpoint",
    "create-request",
    "create-audit",
    "create-comparison",
    "renew-certificate",
    "create-delegation",
    "create-encoding",
    "announce-upload",
]


@dataclass(frozen=True, slots=True)
class Call:
    """A creating call of a party; without a key it cannot be recognised when it is made again."""

    party_id: str
    key: str | None
    name: CallName
    content: Any
    """All that decides what is made, as JSON can hold it."""

    @property
    def digest(self) -> str:
        """Of name and content: what must be the same in a repeated call."""
        canonical = json.dumps([self.name, self.content], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def remember(session: Session, call: Call, resource_id: str) -> str | None:
    """Bind an Idempotency-Key to a new resource; the earlier one's id if the call was made before.

    Runs in the transaction that creates the resource, so that concurrent duplicates make one: the
    second insert waits for the first transaction and then finds its row. It comes before every
    check, since what was right at first may be refused by now.

    Raises:
        IdempotencyConflict: the key was used for another call, or with other content.
    """
    if call.key is None:
        return None
    fresh = session.execute(
        insert(IdempotencyKey)
        .values(
            party_id=call.party_id,
            key=call.key,
            body_sha256=call.digest,
            resource_id=resource_id,
        )
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    ).scalar_one_or_none()
    return None if fresh is not None else recall(session, call)


def recall(session: Session, call: Call) -> str | None:
    """The id of what the call made when it was made before with this key, if it was.

    Raises:
        IdempotencyConflict: the key was used for another call, or with other content.
    """
    if call.key is None:
        return None
    known = session.get(IdempotencyKey, (call.party_id, call.key))
    if known is None:
        return None
    if known.body_sha256 != call.digest:
        raise IdempotencyConflict(
            "This Idempotency-Key was used for another call, or with another body; use a new key."
        )
    return known.resource_id


def forget_expired(session: Session, *, hours: float) -> None:
    """Forget keys that are older: the same key then makes a new resource."""
    session.execute(
        delete(IdempotencyKey).where(
            IdempotencyKey.created_at < func.now() - timedelta(hours=hours)
        )
    )
