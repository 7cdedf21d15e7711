"""Seals rows of the log: gives them positions, chains them, grows the tree and signs its head.

Rows are appended without a common lock and sealed afterwards, by one sealer at a time; a row that is
committed late is sealed late, none is left out.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.orm import Session

from expunge.evidence.canonical import NotCanonical
from expunge.evidence.chain import GENESIS, link, moment
from expunge.evidence.heads import PAYLOAD_TYPE, Head
from expunge.evidence.merkle import Frontier, Node, cover
from expunge.evidence.signing import Signer
from expunge.registry import log
from expunge.registry.record.nodes import hashes_of
from expunge.registry.tables import LogLeaf, LogNode, LogRow, TreeHead, UnsealedRow

BATCH = 1000
"""Rows that are sealed in one transaction, under one head."""
LOCK = 0x6C6F6773
"""Advisory lock of whoever seals."""

logger = structlog.get_logger(__name__)


def is_due(session: Session) -> bool:
    """Whether a row waits to be sealed that can be."""
    waiting = select(UnsealedRow.seq).where(UnsealedRow.refused_at.is_(None))
    return bool(session.scalar(select(exists(waiting))))


def seal(session: Session, signer: Signer | None, *, limit: int = BATCH) -> int:
    """Seal up to `limit` rows under one new head, in the caller's transaction; how many there were.

    0 as well while another process seals. Without a signer the head is stored unsigned, unless the
    one before is signed: then nothing is sealed.
    """
    if not session.scalar(select(func.pg_try_advisory_xact_lock(LOCK))):
        return 0
    if signer is None and _is_signed(session):
        # The first key was introduced after the caller looked for one.
        return 0
    hashed = _hashed(session, limit)
    if not hashed:
        return 0
    last = session.scalar(select(LogLeaf).order_by(LogLeaf.position.desc()).limit(1))
    size, chained = (0, GENESIS) if last is None else (last.position + 1, last.chain_hash)
    peaks = cover(0, size)
    known = hashes_of(session, peaks)
    frontier = Frontier(size, [known[each] for each in peaks])
    leaves, nodes = [], []
    for seq, leaf in hashed:
        chained = link(chained, leaf)
        leaves.append(
            {"position": frontier.size, "seq": seq, "leaf_hash": leaf, "chain_hash": chained}
        )
        nodes += frontier.append(leaf)
    session.execute(insert(LogLeaf), leaves)
    _store_nodes(session, nodes)
    session.execute(delete(UnsealedRow).where(UnsealedRow.seq.in_([seq for seq, _ in hashed])))
    _store_head(session, frontier, chained, signer)
    return len(leaves)


def _is_signed(session: Session) -> bool:
    newest = select(TreeHead.envelope.is_not(None)).order_by(TreeHead.size.desc()).limit(1)
    return bool(session.scalar(newest))


def _hashed(session: Session, limit: int) -> list[tuple[int, bytes]]:
    """Number and leaf hash of the rows to be sealed, in order; however many lie between that cannot be."""
    waiting = (
        select(LogRow)
        .join(UnsealedRow, UnsealedRow.seq == LogRow.seq)
        .where(UnsealedRow.refused_at.is_(None))
        .order_by(UnsealedRow.seq)
        .limit(limit)
    )
    found: list[tuple[int, bytes]] = []
    while not found and (rows := session.scalars(waiting).all()):
        refused = []
        for row in rows:
            try:
                found.append((row.seq, log.as_evidence(row).leaf()))
            except NotCanonical:
                refused.append(row.seq)
        _refuse(session, refused)
    return found


def _refuse(session: Session, seqs: Sequence[int]) -> None:
    """Set aside what was written past the service, loudly: checks of the log name it from now on."""
    if not seqs:
        return
    logger.error("log-rows-cannot-be-sealed", count=len(seqs), first=seqs[0], last=seqs[-1])
    session.execute(
        update(UnsealedRow).where(UnsealedRow.seq.in_(seqs)).values(refused_at=func.now())
    )


def _store_nodes(session: Session, nodes: Sequence[tuple[Node, bytes]]) -> None:
    if nodes:
        rows = [{"level": at.level, "number": at.number, "hash": each} for at, each in nodes]
        session.execute(insert(LogNode), rows)


def _store_head(
    session: Session, frontier: Frontier, chained: bytes, signer: Signer | None
) -> None:
    now = datetime.now(UTC)
    head = Head(frontier.size, frontier.root, chained, moment(now))
    session.execute(
        insert(TreeHead).values(
            size=head.size,
            root_hash=head.root_hash,
            chain_hash=head.chain_hash,
            envelope=None if signer is None else signer.sign(PAYLOAD_TYPE, head.payload()),
            created_at=now,
        )
    )
