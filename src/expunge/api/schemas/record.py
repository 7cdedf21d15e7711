"""The sealed log: rows as they are hashed, tree heads, proofs, and what a check of all of it found."""

from typing import Any, Self

from pydantic import BaseModel, Field

from expunge.evidence.chain import moment
from expunge.registry import log, tables
from expunge.registry.record.checking import Checked, Link

HASH = "SHA-256, hexadecimal."
PATH = "Hashes from the leaf's neighbour up to the root (RFC 9162), hexadecimal."


class RecordRow(BaseModel):
    """One row of the log, complete: its leaf hash can be computed from it."""

    seq: int
    at: str = Field(description="ISO 8601, UTC, microseconds, as it is hashed.")
    actor: str = Field(description="A party's id, or `service`.")
    subject_id: str = Field(description="What it happened to.")
    event: str = Field(description="A state that was entered, or what else happened.")
    detail: dict[str, Any]
    salt: str
    sealed: bool = Field(description="False for about a second after it was written.")
    position: int | None = Field(description="Of its leaf in the tree; 0 is the first.")
    leaf_hash: str | None = Field(description=HASH)
    path: list[str] | None = Field(
        description=f"Where `size` was given and the row is part of that tree: {PATH}"
    )

    @classmethod
    def of(
        cls, row: tables.LogRow, leaf: tables.LogLeaf | None, path: list[bytes] | None = None
    ) -> Self:
        """The row with its leaf, none while it is unsealed, and its inclusion proof if one is wanted."""
        evidence = log.as_evidence(row)
        return cls(
            seq=evidence.seq,
            at=evidence.at,
            actor=evidence.actor,
            subject_id=evidence.subject_id,
            event=evidence.event,
            detail=dict(evidence.detail),
            salt=evidence.salt,
            sealed=leaf is not None,
            position=None if leaf is None else leaf.position,
            leaf_hash=None if leaf is None else leaf.leaf_hash.hex(),
            path=None if path is None else _hex(path),
        )


class TreeHead(BaseModel):
    """What the log was when it had `size` sealed rows."""

    size: int
    root_hash: str = Field(description=f"Of the Merkle tree (RFC 6962). {HASH}")
    chain_hash: str = Field(description=f"Of the last leaf. {HASH}")
    at: str
    signed: bool = Field(description="False where the service had no signing key.")
    envelope: dict[str, Any] | None = Field(
        description="DSSE envelope whose payload states the above; see `GET /signing-keys`."
    )

    @classmethod
    def of(cls, row: tables.TreeHead) -> Self:
        """As it was stored."""
        return cls(
            size=row.size,
            root_hash=row.root_hash.hex(),
            chain_hash=row.chain_hash.hex(),
            at=moment(row.created_at),
            signed=row.envelope is not None,
            envelope=row.envelope,
        )


class InclusionProof(BaseModel):
    """That a row is part of the log as a tree head states it; needs nothing else to be checked."""

    row: RecordRow
    head: TreeHead


class ConsistencyProof(BaseModel):
    """That the log of `second` rows begins with the whole log of `first` rows."""

    first: int
    second: int
    path: list[str] = Field(description="Hashes as in RFC 9162, section 2.1.4, hexadecimal.")


class BrokenLink(BaseModel):
    """The first link that does not hold."""

    kind: Link
    seq: int | None = Field(description="Number of the row, where one is concerned.")
    position: int | None = Field(description="Of the leaf, where one is concerned.")
    size: int | None = Field(description="Of the tree head, where one is concerned.")
    detail: str


class Verification(BaseModel):
    """What was checked by this call: the rows at `start` to `end - 1`."""

    ok: bool = Field(description="Nothing is broken in what this call checked.")
    size: int = Field(description="Rows that are sealed.")
    start: int
    end: int
    next: int | None = Field(description="Pass it as `start` to check what follows; null: all is.")
    unsigned_heads: int = Field(description="Tree heads over these rows that nobody signed.")
    broken: BrokenLink | None

    @classmethod
    def of(cls, checked: Checked) -> Self:
        """As the registry found it."""
        broken = checked.broken
        return cls(
            ok=broken is None,
            size=checked.size,
            start=checked.start,
            end=checked.end,
            next=checked.end if broken is None and checked.end < checked.size else None,
            unsigned_heads=checked.unsigned_heads,
            broken=None
            if broken is None
            else BrokenLink(
                kind=broken.link,
                seq=broken.seq,
                position=broken.position,
                size=broken.size,
                detail=broken.detail,
            ),
        )


def consistency_proof(first: int, second: int, path: list[bytes]) -> ConsistencyProof:
    """The proof between two sizes."""
    return ConsistencyProof(first=first, second=second, path=_hex(path))


def _hex(hashes: list[bytes]) -> list[str]:
    return [each.hex() for each in hashes]
