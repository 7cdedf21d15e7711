"""The rows of the log as leaves, and the chain that binds each to all before it. Knows no tree and no signature."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from expunge.evidence.canonical import canonical
from expunge.evidence.merkle import leaf_hash

CHAIN_PREFIX = b"expunge log chain v1\x00"
"""Keeps these hashes apart from all others."""
GENESIS = hashlib.sha256(CHAIN_PREFIX).digest()
"""What the first leaf is chained to."""
ROW_MEMBERS = ("actor", "at", "detail", "event", "salt", "seq", "subject_id")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the log, complete: whoever has it can compute its leaf hash."""

    seq: int
    at: str
    """ISO 8601, UTC, microseconds: `2026-05-04T12:00:00.000000Z`."""
    actor: str
    subject_id: str
    event: str
    detail: Mapping[str, Any]
    salt: str

    def content(self) -> bytes:
        """The canonical JSON that is hashed.

        Raises:
            NotCanonical: something in it has no canonical form.
        """
        return canonical({name: getattr(self, name) for name in ROW_MEMBERS})

    def leaf(self) -> bytes:
        """The row's leaf hash (RFC 6962); raises as `content`."""
        return leaf_hash(self.content())


def moment(at: datetime) -> str:
    """A point in time as a row writes it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def link(previous: bytes, leaf: bytes) -> bytes:
    """The chain hash of a leaf: SHA-256 over the prefix, the chain hash before it, and its leaf hash."""
    return hashlib.sha256(CHAIN_PREFIX + previous + leaf).digest()
