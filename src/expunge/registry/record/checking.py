"""Checks the whole record, a part at a time: rows against leaves, chain, tree, heads, signatures. Mends nothing.

Each part starts from hashes that the parts before it have checked, so that all parts together check all of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from expunge.evidence.canonical import NotCanonical
from expunge.evidence.chain import GENESIS, link
from expunge.evidence.heads import opened
from expunge.evidence.merkle import Frontier, Node, cover
from expunge.evidence.signing import BadSignature, PublicKey
from expunge.registry import log
from expunge.registry.record.nodes import hashes_of
from expunge.registry.record.proofs import newest_head, stated
from expunge.registry.tables import LogLeaf, LogRow, TreeHead, UnsealedRow

PART = 2000
"""Leaves that are checked in one call: some hundred milliseconds."""


class Link(StrEnum):
    """What can be broken."""

    ROW_CHANGED = "row-changed"
    """A row is not what was sealed."""
    ROW_MISSING = "row-missing"
    """A sealed row is gone."""
    ROW_UNACCOUNTED = "row-unaccounted"
    """A row is neither sealed nor waiting for it, or no seal fits: it came, or its seal went, past the service."""
    LEAF_MISSING = "leaf-missing"
    """A position has no leaf."""
    CHAIN_BROKEN = "chain-broken"
    """A leaf is not chained to the one before it."""
    TREE_BROKEN = "tree-broken"
    """A stored subtree is not that of the leaves below it."""
    HEAD_BROKEN = "head-broken"
    """A tree head is not that of the leaves before it."""
    SIGNATURE_BROKEN = "signature-broken"
    """A tree head's signature does not match, or is missing though the head before has one."""
    HEAD_MISSING = "head-missing"
    """The newest leaves are under no tree head."""
    TAIL_CUT = "tail-cut"
    """A tree head names more leaves than there are."""


@dataclass(frozen=True)
class Broken(Exception):
    """The first link that does not hold; names places, no content."""

    link: Link
    seq: int | None = None
    position: int | None = None
    size: int | None = None
    """Of a tree head."""
    detail: str = ""


@dataclass
class Checked:
    """What one call has looked at: the leaves `start` to `end - 1` of `size`."""

    size: int
    start: int
    end: int
    unsigned_heads: int = 0
    broken: Broken | None = None


@dataclass
class _Walk:
    """Where a check is in the record."""

    chained: bytes
    frontier: Frontier
    signed: bool
    """Whether the head before is: then so are all that follow."""
    completed: list[tuple[Node, bytes]] = field(default_factory=list)

    def step(self, leaf: LogLeaf, row: LogRow | None) -> None:
        if row is None:
            raise Broken(Link.ROW_MISSING, leaf.seq, leaf.position)
        if _hash(row) != leaf.leaf_hash:
            raise Broken(Link.ROW_CHANGED, leaf.seq, leaf.position)
        self.chained = link(self.chained, leaf.leaf_hash)
        if self.chained != leaf.chain_hash:
            raise Broken(Link.CHAIN_BROKEN, leaf.seq, leaf.position)
        self.completed += self.frontier.append(leaf.leaf_hash)


def check(
    session: Session, keys: Sequence[PublicKey], *, start: int = 0, limit: int = PART
) -> Checked:
    """Check `limit` leaves from position `start` on, and with the last of them what must follow nothing.

    Needs a transaction of its own that sees one state of the database (`REPEATABLE READ`).
    """
    largest = session.scalar(select(func.max(LogLeaf.position)))
    size = 0 if largest is None else largest + 1
    start = min(start, size)
    found = Checked(size, start, min(start + limit, size))
    try:
        found.unsigned_heads = _check_part(session, keys, found)
        if found.end == size:
            _check_end(session, size)
        _check_accounted(session, found)
    except Broken as broken:
        found.broken = broken
    return found


def _check_part(session: Session, keys: Sequence[PublicKey], part: Checked) -> int:
    """Check the leaves of the part and the heads over them; how many of these are unsigned."""
    walk = _begin(session, part.start)
    heads = {
        row.size: row
        for row in session.scalars(
            select(TreeHead).where(TreeHead.size > part.start, TreeHead.size <= part.end)
        )
    }
    for leaf, row in _leaves(session, part):
        walk.step(leaf, row)
        if walk.frontier.size in heads:
            _check_head(heads[walk.frontier.size], walk, keys)
    stored = hashes_of(session, [node for node, _ in walk.completed])
    for node, each in walk.completed:
        if stored.get(node) != each:
            raise Broken(Link.TREE_BROKEN, position=(node.number + 1 << node.level) - 1)
    return sum(head.envelope is None for head in heads.values())


def _begin(session: Session, start: int) -> _Walk:
    peaks = cover(0, start)
    hashes = hashes_of(session, peaks)
    before = session.get(LogLeaf, start - 1) if start else None
    if start and before is None:
        raise Broken(Link.LEAF_MISSING, position=start - 1)
    if len(hashes) < len(peaks):
        raise Broken(Link.TREE_BROKEN, position=start - 1)
    chained = GENESIS if before is None else before.chain_hash
    signed = session.scalar(
        select(TreeHead.envelope.is_not(None))
        .where(TreeHead.size <= start)
        .order_by(TreeHead.size.desc())
        .limit(1)
    )
    return _Walk(chained, Frontier(start, [hashes[each] for each in peaks]), bool(signed))


def _leaves(session: Session, part: Checked) -> Iterator[tuple[LogLeaf, LogRow | None]]:
    rows = session.execute(
        select(LogLeaf, LogRow)
        .outerjoin(LogRow, LogRow.seq == LogLeaf.seq)
        .where(LogLeaf.position >= part.start, LogLeaf.position < part.end)
        .order_by(LogLeaf.position)
    ).all()
    expected = part.start
    for leaf, row in rows:
        if leaf.position != expected:
            break
        expected += 1
        yield leaf, row
    if expected != part.end:
        raise Broken(Link.LEAF_MISSING, position=expected)


def _hash(row: LogRow) -> bytes | None:
    try:
        return log.as_evidence(row).leaf()
    except NotCanonical:
        return None


def _check_head(row: TreeHead, walk: _Walk, keys: Sequence[PublicKey]) -> None:
    head = stated(row)
    if (head.root_hash, head.chain_hash) != (walk.frontier.root, walk.chained):
        raise Broken(Link.HEAD_BROKEN, size=row.size)
    if row.envelope is None:
        if walk.signed:
            raise Broken(Link.SIGNATURE_BROKEN, size=row.size, detail="it is not signed any more")
        return
    walk.signed = True
    try:
        signed = opened(row.envelope, keys)
    except BadSignature as error:
        raise Broken(Link.SIGNATURE_BROKEN, size=row.size, detail=str(error)) from error
    if signed != head:
        raise Broken(Link.SIGNATURE_BROKEN, size=row.size, detail="another head was signed")


def _check_end(session: Session, size: int) -> None:
    head = newest_head(session)
    newest = 0 if head is None else head.size
    if newest > size:
        raise Broken(Link.TAIL_CUT, position=size, size=newest)
    if newest < size:
        raise Broken(Link.HEAD_MISSING, position=newest)


def _check_accounted(session: Session, part: Checked) -> None:
    """Rows whose numbers follow that of the last leaf before the part, up to that of its last leaf.

    However numbers and positions differ in order, all parts together look at every number.
    """
    ends = (part.start - 1, part.end - 1)
    known = select(LogLeaf.position, LogLeaf.seq).where(LogLeaf.position.in_(ends))
    numbers = dict(session.execute(known).all())
    unaccounted = select(LogRow.seq).where(
        ~exists(select(LogLeaf.seq).where(LogLeaf.seq == LogRow.seq)),
        ~exists(
            select(UnsealedRow.seq).where(
                UnsealedRow.seq == LogRow.seq, UnsealedRow.refused_at.is_(None)
            )
        ),
    )
    if part.start:
        unaccounted = unaccounted.where(LogRow.seq > numbers[part.start - 1])
    if part.end < part.size:
        unaccounted = unaccounted.where(LogRow.seq <= numbers[part.end - 1])
    seq = session.scalar(unaccounted.limit(1))
    if seq is not None:
        raise Broken(Link.ROW_UNACCOUNTED, seq)
