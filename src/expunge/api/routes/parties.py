"""Who takes part: parties, their keys, and who the caller is."""

from fastapi import APIRouter, Response

from expunge.api import pages
from expunge.api.auth import AnyCaller, Operator
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import parties as schemas
from expunge.api.schemas.values import IdempotencyKey, KeyPath, PartyPath
from expunge.api.service import CurrentService
from expunge.registry import parties, visibility

router = APIRouter(tags=["parties"], route_class=JsonRoute)


@router.get("/me", summary="Who am I?")
def show_caller(caller: AnyCaller) -> schemas.Me:
    """The party and the key of this call."""
    key = schemas.UsedKey(id=caller.key.id, expires_at=caller.key.expires_at)
    return schemas.Me(party=schemas.Party.of(caller.party), key=key)


@router.post("/parties", status_code=201, summary="Add a party", responses=documented(403, 409))
def create_party(
    body: schemas.NewParty,
    operator: Operator,
    service: CurrentService,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Party:
    """Add somebody who may hold keys. Names are unique."""
    with service.sessions.begin() as session:
        row = parties.create_party(
            session, body.name, body.role, actor=operator.id, idempotency_key=idempotency_key
        )
    return schemas.Party.of(row)


@router.get("/parties", summary="List parties", responses=documented(403))
def list_parties(operator: Operator, service: CurrentService, page: Paging) -> Page[schemas.Party]:
    """All parties, newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, visibility.parties(operator), page)
    return Page(items=[schemas.Party.of(row) for row in rows], next_cursor=following)


@router.post(
    "/parties/{party_id}/keys",
    status_code=201,
    summary="Issue a key",
    responses=documented(403, 404),
)
def create_key(
    *,
    party_id: PartyPath,
    operator: Operator,
    service: CurrentService,
    response: Response,
    body: schemas.NewKey | None = None,
    idempotency_key: IdempotencyKey = None,
) -> schemas.IssuedKey:
    """Give a party a key. The answer shows its secret once; only a hash of it is kept.

    Repeated with its Idempotency-Key, the call answers with the same key and `secret: null`.
    """
    days = body.expires_in_days if body is not None else None
    with service.sessions.begin() as session:
        issued = parties.issue_key(
            session,
            party_id,
            expires_in_days=days,
            actor=operator.id,
            idempotency_key=idempotency_key,
        )
    response.headers["Cache-Control"] = "no-store"
    return schemas.IssuedKey.of(issued)


@router.delete(
    "/keys/{key_id}", status_code=204, summary="Revoke a key", responses=documented(403, 404)
)
def revoke_key(key_id: KeyPath, operator: Operator, service: CurrentService) -> None:
    """End a key's life at once. Revoking it again changes nothing."""
    with service.sessions.begin() as session:
        parties.revoke_key(session, key_id, actor=operator.id)
