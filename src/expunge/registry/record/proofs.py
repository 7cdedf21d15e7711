"""Proofs that a row is in the log and that one log continues another, from stored hashes. Reads no rows of the log."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.evidence.chain import moment
from expunge.evidence.heads import Head
from expunge.evidence.merkle import consistency_cover, inclusion_cover, proof
from expunge.registry.errors import Invalid, NotFound
from expunge.registry.record.nodes import hashes_of
from expunge.registry.tables import LogLeaf, TreeHead


def newest_head(session: Session) -> TreeHead | None:
    """The head of the largest tree; none before the first row is sealed."""
    return session.scalar(select(TreeHead).order_by(TreeHead.size.desc()).limit(1))


def head_of(session: Session, size: int | None = None) -> TreeHead:
    """The head of a tree of that size, the newest if none is named.

    Raises:
        NotFound: there is none.
    """
    row = newest_head(session) if size is None else session.get(TreeHead, size)
    if row is None:
        raise NotFound.of("tree head", "yet" if size is None else f"of {size} leaves")
    return row


def stated(row: TreeHead) -> Head:
    """The head as it is signed."""
    return Head(row.size, row.root_hash, row.chain_hash, moment(row.created_at))


def leaf_of(session: Session, seq: int) -> LogLeaf | None:
    """The leaf of a row of the log; none while it waits to be sealed."""
    return session.scalar(select(LogLeaf).where(LogLeaf.seq == seq))


def inclusion(session: Session, positions: Sequence[int], size: int) -> dict[int, list[bytes]]:
    """The inclusion proof of each of these leaves in the tree of that size, which is stored.

    Raises:
        ValueError: such a tree has no such leaf.
    """
    parts = {each: inclusion_cover(each, size) for each in positions}
    nodes = {node for part in parts.values() for cover in part for node in cover}
    hashes = hashes_of(session, nodes)
    return {position: proof(part, hashes.__getitem__) for position, part in parts.items()}


def consistency(session: Session, first: int, second: int) -> list[bytes]:
    """The proof that the tree of `second` leaves begins with that of `first` leaves.

    Raises:
        Invalid: not 0 < first <= second <= the sealed leaves.
    """
    newest = newest_head(session)
    size = 0 if newest is None else newest.size
    if not 0 < first <= second <= size:
        raise Invalid(
            f"first and second must be sizes of the log, 1 to {size}, in this order.",
            allowed={"ge": 1, "le": size},
        )
    parts = consistency_cover(first, second)
    hashes = hashes_of(session, {node for cover in parts for node in cover})
    return proof(parts, hashes.__getitem__)
