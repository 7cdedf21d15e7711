"""Parties and their keys. A key's secret is shown once and only its SHA-256 is kept."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from expunge.registry import idempotency, log
from expunge.registry.errors import Conflict, NotFound, Unauthenticated
from expunge.registry.ids import Prefix, new_id
from expunge.registry.tables import ApiKey, Party, Role

SECRET_PREFIX = "xpk_"  # noqa: S105 - marks a string as a key of this service, for secret scanners
SECRET_BYTES = 32

# Every call begins with it: building a statement takes longer than running it.
_LIVE_KEY = select(ApiKey).where(
    ApiKey.secret_sha256 == bindparam("secret_sha256"),
    ApiKey.revoked_at.is_(None),
    func.coalesce(ApiKey.expires_at > func.now(), True),
)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key with its secret, which is there this once: not when the same call is made again."""

    key: ApiKey
    secret: str | None


def create_party(
    session: Session, name: str, role: Role, *, actor: str, idempotency_key: str | None = None
) -> Party:
    """Add a party; with the key and content of an earlier call, that call's one.

    Raises:
        IdempotencyConflict: the key was used with other content.
        Conflict: the name is taken.
    """
    party_id = new_id(Prefix.PARTY)
    call = idempotency.Call(actor, idempotency_key, "create-party", [name, role])
    if earlier := idempotency.remember(session, call, party_id):
        return session.get_one(Party, earlier)
    if session.scalar(select(Party.id).where(Party.name == name)):
        raise Conflict(f"A party named {name!r} exists already.")
    party = Party(id=party_id, name=name, role=role)
    session.add(party)
    session.flush()
    log.append(session, actor, party.id, "created", role=role)
    return party


def issue_key(
    session: Session,
    party_id: str,
    *,
    expires_in_days: int | None,
    actor: str,
    idempotency_key: str | None = None,
) -> IssuedKey:
    """Give a party a new key; with the Idempotency-Key of an earlier call, that call's key, without its secret.

    Raises:
        IdempotencyConflict: the Idempotency-Key was used with other content.
        NotFound: no such party.
    """
    key_id = new_id(Prefix.KEY)
    call = idempotency.Call(actor, idempotency_key, "issue-key", [party_id, expires_in_days])
    if earlier := idempotency.remember(session, call, key_id):
        return IssuedKey(session.get_one(ApiKey, earlier), None)
    if session.get(Party, party_id) is None:
        raise NotFound.of("party", party_id)
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    expires_at = (
        datetime.now(UTC) + timedelta(days=expires_in_days) if expires_in_days is not None else None
    )
    key = ApiKey(
        id=key_id,
        party_id=party_id,
        secret_sha256=_sha256(secret),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    log.append(session, actor, key.id, "created", party_id=party_id)
    return IssuedKey(key, secret)


def operator_named(session: Session, name: str, *, actor: str) -> Party:
    """The operator of that name, created if there is none: so that a lost key can be replaced.

    Raises:
        Conflict: a party of another role has the name.
    """
    party = session.scalar(select(Party).where(Party.name == name, Party.role == Role.OPERATOR))
    return party or create_party(session, name, Role.OPERATOR, actor=actor)


def revoke_key(session: Session, key_id: str, *, actor: str) -> None:
    """End a key's life at once; ending it again changes nothing.

    Raises:
        NotFound: no such key.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound.of("key", key_id)
    if key.revoked_at is None:
        key.revoked_at = func.now()
        log.append(session, actor, key.id, "revoked")


def authenticate(session: Session, secret: str) -> ApiKey:
    """The live key that has this secret.

    Raises:
        Unauthenticated: unknown, expired or revoked (the answer does not say which of them).
    """
    key = session.scalar(_LIVE_KEY, {"secret_sha256": _sha256(secret)})
    if key is None:
        raise Unauthenticated("The key is unknown, expired or revoked.")
    return key


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
