"""The record: own rows of the log with proofs, tree heads, and a check of the whole chain."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from expunge.api import pages
from expunge.api.auth import AnyCaller
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import record as schemas
from expunge.api.service import CurrentService
from expunge.registry import signing_keys, visibility
from expunge.registry.errors import Conflict, NotFound
from expunge.registry.record import checking, proofs
from expunge.registry.tables import LogLeaf, LogRow

MAX_SIZE = 2**53 - 1
"""What JSON carries exactly; the database holds more."""
MAX_SUBJECT_CHARS = 100

router = APIRouter(tags=["log"], route_class=JsonRoute)

Size = Annotated[int | None, Query(ge=1, le=MAX_SIZE)]


@router.get("/log", summary="List log rows", responses=documented(404))
def list_log_rows(
    caller: AnyCaller,
    service: CurrentService,
    page: Paging,
    subject: Annotated[
        str | None,
        Query(
            max_length=MAX_SUBJECT_CHARS,
            pattern=r"^[\x21-\x7e]+$",
            description="Only rows about this id.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        Query(ge=1, le=MAX_SIZE, description="Prove each row under the tree head of this size."),
    ] = None,
) -> Page[schemas.RecordRow]:
    """What you did and what happened to what is yours, oldest first, complete and with its seal."""
    readable = visibility.log_rows(caller.party).where(LogRow.seq > pages.offset(page))
    if subject is not None:
        readable = readable.where(LogRow.subject_id == subject)
    with service.sessions() as session:
        rows = session.execute(
            readable.add_columns(LogLeaf)
            .outerjoin(LogLeaf, LogLeaf.seq == LogRow.seq)
            .order_by(LogRow.seq)
            .limit(page.limit + 1)
        ).all()
        found, following = pages.cut(rows, page.limit, lambda pair: str(pair[0].seq))
        paths: dict[int, list[bytes]] = {}
        if size is not None:
            proofs.head_of(session, size)
            proven = [leaf.position for _, leaf in found if leaf and leaf.position < size]
            paths = proofs.inclusion(session, proven, size)
    items = [
        schemas.RecordRow.of(row, leaf, paths.get(leaf.position) if leaf else None)
        for row, leaf in found
    ]
    return Page(items=items, next_cursor=following)


@router.get("/log/head", summary="Show a tree head", responses=documented(404))
def show_tree_head(
    caller: AnyCaller, service: CurrentService, size: Size = None
) -> schemas.TreeHead:
    """The newest one, or that of a size: keep it, and nobody can rewrite what it covers unnoticed."""
    with service.sessions() as session:
        return schemas.TreeHead.of(proofs.head_of(session, size))


@router.get("/log/consistency", summary="Prove that the log only grew")
def prove_consistency(
    caller: AnyCaller,
    service: CurrentService,
    first: Annotated[int, Query(ge=1, le=MAX_SIZE, description="Size of the older head.")],
    second: Annotated[int, Query(ge=1, le=MAX_SIZE, description="Size of the newer head.")],
) -> schemas.ConsistencyProof:
    """The proof that the log of `second` rows begins with that of `first` rows (RFC 9162)."""
    with service.sessions() as session:
        path = proofs.consistency(session, first, second)
    return schemas.consistency_proof(first, second, path)


@router.get("/log/verify", summary="Check the whole log")
def verify_log(
    caller: AnyCaller,
    service: CurrentService,
    start: Annotated[
        int,
        Query(ge=0, le=MAX_SIZE, description="Position to begin with: `next` of the last call."),
    ] = 0,
) -> schemas.Verification:
    """Let the service compare rows, leaves, chain, tree, heads and signatures, a part a call.

    Everybody's rows are checked; of what is broken only the place is told. What a service says of
    itself is no proof: for that keep tree heads and ask for proofs.
    """
    with service.sessions() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        keys = signing_keys.public_keys(session)
        return schemas.Verification.of(checking.check(session, keys, start=start))


@router.get("/log/{seq}/proof", summary="Prove a log row", responses=documented(404, 409))
def prove_log_row(
    seq: Annotated[int, Path(ge=1, le=MAX_SIZE)],
    caller: AnyCaller,
    service: CurrentService,
    size: Size = None,
) -> schemas.InclusionProof:
    """The proof that a row of yours is part of the newest tree head, or of the one of a size."""
    with service.sessions() as session:
        readable = visibility.log_rows(caller.party).where(LogRow.seq == seq)
        row = session.scalar(readable)
        if row is None:
            raise NotFound.of("log row", str(seq))
        leaf = proofs.leaf_of(session, seq)
        if leaf is None:
            raise Conflict(f"Log row {seq} is not sealed yet; ask again in a second.")
        head = proofs.head_of(session, size)
        if leaf.position >= head.size:
            raise Conflict(
                f"Log row {seq} is at position {leaf.position}: the tree of {head.size} rows ends "
                "before it.",
                position=leaf.position,
            )
        path = proofs.inclusion(session, [leaf.position], head.size)[leaf.position]
        return schemas.InclusionProof(
            row=schemas.RecordRow.of(row, leaf, path), head=schemas.TreeHead.of(head)
        )
