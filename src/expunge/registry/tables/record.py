"""The seal of the log: its rows in one order, chained, in a Merkle tree with heads. Appended to, never changed."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, LargeBinary, SmallInteger, func
from sqlalchemy.orm import Mapped, mapped_column

from expunge.registry.tables.base import Table


class UnsealedRow(Table):
    """A row of the log that waits for its leaf; the database adds it in the row's own transaction."""

    __tablename__ = "log_unsealed"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    refused_at: Mapped[datetime | None]
    """When the sealer found that it has no canonical form: it was written past the service."""


class LogLeaf(Table):
    """A row's place in the sealed log. Hashes are 32 bytes."""

    __tablename__ = "log_leaves"

    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """0 is the first leaf."""
    seq: Mapped[int] = mapped_column(BigInteger, unique=True)
    """No foreign key: each new leaf would write to its row of the log."""
    leaf_hash: Mapped[bytes] = mapped_column(LargeBinary)
    chain_hash: Mapped[bytes] = mapped_column(LargeBinary)
    """Binds this leaf and all before it."""


class LogNode(Table):
    """The hash of a complete subtree of 2^level leaves, level 1 and up; `number` counts them from the left."""

    __tablename__ = "log_nodes"

    level: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class TreeHead(Table):
    """What the log was when it had `size` leaves."""

    __tablename__ = "tree_heads"

    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root_hash: Mapped[bytes] = mapped_column(LargeBinary)
    chain_hash: Mapped[bytes] = mapped_column(LargeBinary)
    envelope: Mapped[dict[str, Any] | None]
    """The signed statement of it; none where the service had no signing key."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
