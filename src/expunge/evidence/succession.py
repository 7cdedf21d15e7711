"""How one signing key follows another: whoever trusts an early key can trust a later one. Trusts none by itself."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.evidence.canonical import canonical
from expunge.evidence.signing import BadSignature, PublicKey, Signer, UnusableKey, verify

PAYLOAD_TYPE = "application/vnd.expunge.key-succession+json"
STATEMENT_TYPE = "https://expunge.dev/key-succession/v1"


class Succession(BaseModel):
    """The statement that a key follows another, signed by that other one."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    type: Literal["https://expunge.dev/key-succession/v1"] = Field(alias="_type")
    previous: str
    """Id of the key that signs this."""
    key_id: str
    public_key: str
    """PEM of the key that takes over."""
    at: str
    """ISO 8601, UTC."""

    @classmethod
    def signed(cls, old: Signer, new: PublicKey, at: datetime) -> dict[str, Any]:
        """The envelope in which the old key introduces the new one."""
        statement = cls(
            type=STATEMENT_TYPE,
            previous=old.key_id,
            key_id=new.id,
            public_key=new.pem,
            at=at.isoformat(),
        )
        return old.sign(PAYLOAD_TYPE, canonical(statement.model_dump(by_alias=True)))

    @classmethod
    def verified(cls, envelope: Any, previous: PublicKey) -> Self:
        """The statement, if the key before made it.

        Raises:
            BadSignature: it did not, or it is no such statement.
        """
        payload = verify(envelope, [previous], PAYLOAD_TYPE)
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise BadSignature("this is no statement that a key follows another") from error


class KnownKey(BaseModel):
    """A signing key of the service as it tells of it: `GET /signing-keys` and certificates."""

    model_config = ConfigDict(frozen=True)

    key_id: str = Field(description="SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal.")
    public_key: str = Field(description="PEM.")
    since: str = Field(description="ISO 8601, UTC.")
    introduced_by: dict[str, Any] | None = Field(
        description="DSSE envelope of the statement by the key before that this one follows it; "
        "null for the first."
    )

    def parsed(self) -> PublicKey:
        """The key itself.

        Raises:
            BadSignature: it is no key, or not the one that `key_id` names.
        """
        try:
            key = PublicKey.from_pem(self.public_key)
        except UnusableKey as error:
            raise BadSignature(f"key {self.key_id!r}: {error}") from error
        if key.id != self.key_id:
            raise BadSignature(f"key {self.key_id!r} is not the key that is given under its name")
        return key


def follow(pinned: PublicKey, keys: Sequence[KnownKey]) -> list[PublicKey]:
    """The pinned key and those that follow from it; `keys` in the order of their succession.

    Each has to be introduced by the one before, which is what the pinned key's word reaches.

    Raises:
        BadSignature: the pinned key is not among them, or a succession is not what it should be.
    """
    ids = [each.key_id for each in keys]
    if pinned.id not in ids:
        raise BadSignature(
            f"no succession leads from your key {pinned.id} to the key of this certificate; take "
            "the key that the service had when the certificate was issued, or an earlier one"
        )
    trusted = [pinned]
    for known in keys[ids.index(pinned.id) + 1 :]:
        key, previous = known.parsed(), trusted[-1]
        try:
            statement = Succession.verified(known.introduced_by, previous)
        except BadSignature as error:
            raise BadSignature(
                f"the succession from key {previous.id} to key {key.id}: {error}"
            ) from error
        if (statement.previous, statement.key_id) != (previous.id, key.id):
            raise BadSignature(f"key {previous.id} introduced another key than {key.id}")
        trusted.append(key)
    return trusted
