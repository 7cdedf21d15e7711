"""Calls that create something and may be repeated: the same key and content give the same resource."""

import hashlib
import json
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.registry.errors import IdempotencyConflict
from expunge.registry.tables import IdempotencyKey, Party


def remember(
    session: Session, owner: Party, key: str, content: Any, resource_id: str
) -> str | None:
    """Bind an Idempotency-Key to a new resource; the earlier one's id if the call was made before.

    Runs in the transaction that creates the resource, so that concurrent duplicates make one: the
    second insert waits for the first transaction and then finds its row.

    Raises:
        IdempotencyConflict: the key was used with other content.
    """
    body_sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    fresh = session.execute(
        insert(IdempotencyKey)
        .values(party_id=owner.id, key=key, body_sha256=body_sha256, resource_id=resource_id)
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    ).scalar_one_or_none()
    if fresh is not None:
        return None
    known = session.get_one(IdempotencyKey, (owner.id, key))
    if known.body_sha256 != body_sha256:
        raise IdempotencyConflict(
            "This Idempotency-Key was used for a call with another body; use a new key."
        )
    return known.resource_id


def forget_expired(session: Session, *, hours: float) -> None:
    """Forget keys that are older: the same key then makes a new resource."""
    session.execute(
        delete(IdempotencyKey).where(
            IdempotencyKey.created_at < func.now() - timedelta(hours=hours)
        )
    )
