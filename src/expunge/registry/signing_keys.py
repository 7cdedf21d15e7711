"""The keys that the service signs with: at most one is in use, each but the first introduced by the one before."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.evidence.signing import PublicKey, Signer, UnusableKey
from expunge.evidence.succession import KnownKey, Succession
from expunge.registry import log
from expunge.registry.errors import DomainError
from expunge.registry.settings import Settings
from expunge.registry.tables import SigningKey

structured = structlog.get_logger(__name__)


class NoSigningKey(DomainError):
    """The service has no key that it may sign with now."""

    slug, title, status = "no-signing-key", "The service cannot sign", 503


def load(settings: Settings) -> Signer | None:
    """The key of `signing_key_file`; None where none is set.

    Raises:
        UnusableKey: the file cannot be used.
    """
    return Signer.load(Path(settings.signing_key_file)) if settings.signing_key_file else None


def required(session: Session, settings: Settings) -> Signer:
    """The key to sign with now.

    Raises:
        NoSigningKey: none is set, its file cannot be used, or it is not the key in use.
    """
    try:
        signer = load(settings)
    except UnusableKey as error:
        structured.error("signing-key-unusable", error=str(error))
        raise NoSigningKey("The service's signing key cannot be used; its log says why.") from error
    if signer is None:
        raise NoSigningKey("This service has no signing key; its operator can set one.")
    admit(session, signer)
    return signer


def current(session: Session, settings: Settings) -> Signer | None:
    """The key to sign with now; None only where the service has never had one.

    Raises:
        NoSigningKey: as `required`; or the service has a key and this process was given none.
    """
    if settings.signing_key_file:
        return required(session, settings)
    if in_use(session) is not None:
        raise NoSigningKey("The service has a signing key, but this process was given none.")
    return None


def admit(session: Session, signer: Signer) -> None:
    """Let only the key in use sign; the first that the service is started with becomes it.

    Raises:
        NoSigningKey: another key is in use, or this one was retired.
    """
    current = in_use(session)
    if current is None:
        first = insert(SigningKey).values(id=signer.key_id, pem=signer.public_key.pem)
        added = session.scalar(first.on_conflict_do_nothing().returning(SigningKey.id))
        if added is not None:
            log.append(session, log.SERVICE, signer.key_id, "signing-key-introduced")
        current = in_use(session)
    if current is None or current.id != signer.key_id:
        known = session.get(SigningKey, signer.key_id)
        raise NoSigningKey(
            f"The service's signing key {signer.key_id} "
            + ("was retired." if known else "is not introduced; its operator has to rotate to it.")
        )


def in_use(session: Session) -> SigningKey | None:
    """The key that is not retired; none before the first."""
    return session.scalar(select(SigningKey).where(SigningKey.retired_at.is_(None)))


def rotate(session: Session, old: Signer, new: Signer) -> SigningKey:
    """Retire the key in use for a new one, which it introduces.

    Raises:
        NoSigningKey: the old key is not the one in use, or the new one was used before.
    """
    session.execute(text("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE"))
    admit(session, old)
    if session.get(SigningKey, new.key_id) is not None:
        raise NoSigningKey(f"Key {new.key_id} was in use before; make a new one.")
    current = session.get_one(SigningKey, old.key_id)
    now = datetime.now(UTC)
    current.retired_at = now
    session.flush()
    row = SigningKey(
        id=new.key_id,
        pem=new.public_key.pem,
        created_at=now,
        introduced_by=Succession.signed(old, new.public_key, now),
    )
    session.add(row)
    session.flush()
    log.append(session, log.SERVICE, row.id, "signing-key-introduced", previous=old.key_id)
    return row


def every(session: Session) -> Sequence[SigningKey]:
    """All keys in the order in which they followed each other."""
    ordered = select(SigningKey).order_by(SigningKey.retired_at.asc().nulls_last())
    return session.scalars(ordered).all()


def known(rows: Sequence[SigningKey]) -> list[KnownKey]:
    """The keys as everybody may know them."""
    return [
        KnownKey(
            key_id=row.id,
            public_key=row.pem,
            since=row.created_at.astimezone(UTC).isoformat(),
            introduced_by=row.introduced_by,
        )
        for row in rows
    ]


def public_keys(session: Session) -> list[PublicKey]:
    """What signatures of this service are checked with, newest last."""
    return [PublicKey(row.pem) for row in every(session)]
