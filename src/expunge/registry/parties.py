"""Parties and their keys. A key's secret is shown once and only its SHA-256 is kept."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Select, bindparam, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from expunge.registry import idempotency, log, visibility
from expunge.registry.errors import Conflict, Forbidden, NotFound, Unauthenticated
from expunge.registry.ids import Prefix, new_id
from expunge.registry.tables import ApiKey, Party, Role, Scope

SECRET_PREFIX = "xpk_"  # noqa: S105 - marks a string as a key of this service, for secret scanners
SECRET_BYTES = 32
USE_SECONDS = 60
"""How exactly a key's last use is known: writing it down costs more than looking a key up."""

# Every call begins with it: building a statement takes longer than running it.
_LIVES = (ApiKey.revoked_at.is_(None), func.coalesce(ApiKey.expires_at > func.now(), True))
_LIVE_KEY = select(ApiKey).where(ApiKey.secret_sha256 == bindparam("secret_sha256"), *_LIVES)
_LIVES_STILL = select(ApiKey.id).where(ApiKey.id == bindparam("key_id"), *_LIVES)


class ScopesExceeded(Forbidden):
    """A key would be made that may do more than the one that asks for it."""

    slug, title = "scopes-exceeded", "Beyond the key's scopes"


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
    scopes: Sequence[Scope] | None = None,
    used: ApiKey | None = None,
    idempotency_key: str | None = None,
) -> IssuedKey:
    """Give a party a new key; with the Idempotency-Key of an earlier call, that call's key, without its secret.

    Without `scopes` it may do all that the party's role may. `used` is the key of the call, if it
    came by one: the log names it, so that what a stolen key has made can be found.

    Raises:
        IdempotencyConflict: the Idempotency-Key was used with other content.
        NotFound: no such party.
        ScopesExceeded: it would have scopes that `used` does not have.
    """
    if used is not None and not _covers(used, scopes):
        raise ScopesExceeded(
            "A key hands out no scope that it does not have itself; yours has "
            f"{', '.join(used.scopes or ())}: name scopes among them, or call with a key that has "
            "more.",
            scopes=used.scopes,
        )
    key_id = new_id(Prefix.KEY)
    held = None if scopes is None else sorted(set(scopes))
    content = [party_id, expires_in_days, *([held] if held else [])]
    call = idempotency.Call(actor, idempotency_key, "issue-key", content)
    if earlier := idempotency.remember(session, call, key_id):
        return IssuedKey(session.get_one(ApiKey, earlier), None)
    if session.get(Party, party_id) is None:
        raise NotFound.of("party", party_id)
    expires_at = (
        datetime.now(UTC) + timedelta(days=expires_in_days) if expires_in_days is not None else None
    )
    key = ApiKey(id=key_id, party_id=party_id, scopes=held, expires_at=expires_at)
    detail: dict[str, object] = {"scopes": held} if held else {}
    if used is not None:
        detail["issued_with"] = used.id
    return _added(session, key, actor, party_id=party_id, **detail)


def rotate_key(
    session: Session,
    used: ApiKey,
    key_id: str,
    *,
    overlap: timedelta,
    idempotency_key: str | None = None,
) -> IssuedKey:
    """Replace a live key: a new secret with the same scopes and as long a life, the old one for `overlap` more.

    `used` is the key of the call, one of the same party. With the Idempotency-Key of an earlier
    call, that call's key, without its secret.

    Raises:
        IdempotencyConflict: the Idempotency-Key was used with other content.
        NotFound: not a key of the party.
        ScopesExceeded: it may do what `used` may not.
        Conflict: it has ended, or was rotated before, or too many rotated ones still work.
    """
    new_key_id = new_id(Prefix.KEY)
    content = [key_id, overlap.total_seconds()]
    call = idempotency.Call(used.party_id, idempotency_key, "rotate-key", content)
    if earlier := idempotency.remember(session, call, new_key_id):
        return IssuedKey(session.get_one(ApiKey, earlier), None)
    own = select(ApiKey).where(ApiKey.id == key_id, ApiKey.party_id == used.party_id)
    old = session.scalar(own.with_for_update(of=ApiKey))
    if old is None:
        raise NotFound.of("key", key_id)
    _require_covered(used, old)
    now = datetime.now(UTC)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict(f"Key {key_id} has ended; it cannot be rotated any more.")
    if successor := session.scalar(select(ApiKey.id).where(ApiKey.replaces_id == key_id)):
        raise Conflict(f"Key {key_id} was rotated before, to {successor}.", replaced_by=successor)
    if overlap:
        _require_few_overlaps(session, used.party_id)
    lifetime = None if old.expires_at is None else old.expires_at - old.created_at
    new = ApiKey(
        id=new_key_id,
        party_id=used.party_id,
        scopes=old.scopes,
        expires_at=None if lifetime is None else now + lifetime,
        replaces_id=key_id,
    )
    end = now + overlap
    old.expires_at = end if old.expires_at is None else min(end, old.expires_at)
    log.append(session, used.party_id, key_id, "rotated", replaced_by=new_key_id)
    return _added(session, new, used.party_id, party_id=used.party_id, replaces=key_id)


def _require_covered(used: ApiKey, other: ApiKey) -> None:
    """Otherwise whoever holds a key that may do little would be shown the secret of one that may do more."""
    if not _covers(used, other.scopes):
        raise ScopesExceeded(
            f"Key {other.id} may do more than the one that you call with: rotate it with itself, or "
            "with a key that may do as much.",
            scopes=used.scopes,
        )


def _covers(used: ApiKey, scopes: Sequence[str] | None) -> bool:
    """Whether a key has all of these scopes; none given are all that there are."""
    return used.scopes is None or (scopes is not None and set(scopes) <= set(used.scopes))


def _require_few_overlaps(session: Session, party_id: str) -> None:
    """Otherwise a key, rotated again and again, would be many, each with calls of its own a minute.

    Rotated keys that still work are never more than those that were not rotated, whose number only
    operators raise.
    """
    session.execute(select(Party.id).where(Party.id == party_id).with_for_update(key_share=True))
    successor = aliased(ApiKey)
    rotated = select(successor.id).where(successor.replaces_id == ApiKey.id).exists()
    live = select(func.count()).where(ApiKey.party_id == party_id, *_LIVES)
    overlapping = session.scalars(live.where(rotated)).one()
    current = session.scalars(live.where(~rotated)).one()
    if overlapping >= current:
        raise Conflict(
            f"{overlapping} rotated keys of yours still work, beside {current} that replace them or "
            "were not rotated: revoke one of them, wait until it ends, or rotate with an overlap of 0.",
            overlapping=overlapping,
            allowed=current,
        )


def _added(session: Session, key: ApiKey, actor: str, **detail: object) -> IssuedKey:
    """The new key with a secret of its own, written and logged."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    key.secret_sha256 = digest_of(secret)
    session.add(key)
    session.flush()
    log.append(session, actor, key.id, "created", **detail)
    return IssuedKey(key, secret)


def operator_named(session: Session, name: str, *, actor: str) -> Party:
    """The operator of that name, created if there is none: so that a lost key can be replaced.

    Raises:
        Conflict: a party of another role has the name.
    """
    party = session.scalar(select(Party).where(Party.name == name, Party.role == Role.OPERATOR))
    return party or create_party(session, name, Role.OPERATOR, actor=actor)


def revoke_key(session: Session, party: Party, key_id: str) -> None:
    """End a key's life at once, an operator anybody's; ending it again changes nothing.

    Raises:
        NotFound: no such key that the party may see.
    """
    key = visibility.one(session, visibility.keys(party), key_id)
    if key.revoked_at is None:
        key.revoked_at = func.now()
        log.append(session, party.id, key.id, "revoked")


def note_use(session: Session, key_id: str) -> None:
    """Write down that a key was used just now, unless that was done within the last minute or is being done."""
    stale: Select[str] = select(ApiKey.id).where(
        ApiKey.id == key_id,
        or_(
            ApiKey.last_used_at.is_(None),
            ApiKey.last_used_at < func.now() - timedelta(seconds=USE_SECONDS),
        ),
    )
    waiting = stale.with_for_update(skip_locked=True).scalar_subquery()
    session.execute(update(ApiKey).where(ApiKey.id == waiting).values(last_used_at=func.now()))


def authenticate(session: Session, secret_sha256: str) -> ApiKey:
    """The live key whose secret has this digest.

    Raises:
        Unauthenticated: unknown, expired or revoked (the answer does not say which of them).
    """
    key = session.scalar(_LIVE_KEY, {"secret_sha256": secret_sha256})
    if key is None:
        raise Unauthenticated("The key is unknown, expired or revoked.")
    return key


def is_live(session: Session, key_id: str) -> bool:
    """Whether a key has neither expired nor been revoked since it was met."""
    return session.scalar(_LIVES_STILL, {"key_id": key_id}) is not None


def digest_of(secret: str) -> str:
    """What is kept of a secret: its SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()
