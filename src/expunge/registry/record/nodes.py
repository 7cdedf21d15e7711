"""Looks up hashes of complete subtrees, many at once. Computes nothing."""

from collections.abc import Collection

from sqlalchemy import BigInteger, SmallInteger, and_, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from expunge.evidence.merkle import Node
from expunge.registry.tables import LogLeaf, LogNode


def hashes_of(session: Session, nodes: Collection[Node]) -> dict[Node, bytes]:
    """The stored hashes of these nodes; what is not stored is not in the answer."""
    positions = sorted({node.number for node in nodes if node.level == 0})
    inner = sorted({node for node in nodes if node.level})
    found: dict[Node, bytes] = {}
    if positions:
        leaves = select(LogLeaf.position, LogLeaf.leaf_hash).where(LogLeaf.position.in_(positions))
        for position, each in session.execute(leaves):
            found[Node(0, position)] = each
    if inner:
        columns = func.unnest(
            cast([node.level for node in inner], ARRAY(SmallInteger)),
            cast([node.number for node in inner], ARRAY(BigInteger)),
        )
        wanted = columns.table_valued("level", "number").render_derived(name="wanted")
        here = and_(LogNode.level == wanted.c.level, LogNode.number == wanted.c.number)
        rows = select(LogNode.level, LogNode.number, LogNode.hash).join(wanted, here)
        for level, number, each in session.execute(rows):
            found[Node(level, number)] = each
    return found
