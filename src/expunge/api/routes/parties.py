"""Who takes part: parties, their keys, and who the caller is."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response

from expunge.api import pages
from expunge.api.auth import AnyCaller, Operator
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import parties as schemas
from expunge.api.schemas.values import IdempotencyKey, KeyPath, PartyId, PartyPath
from expunge.api.service import CurrentService
from expunge.registry import parties, quota, visibility
from expunge.registry.tables import ApiKey, Role

STORING = (Role.DATA_OWNER, Role.MODEL_OWNER)
router = APIRouter(tags=["parties"], route_class=JsonRoute)


@router.get("/me", summary="Who am I?")
def show_caller(caller: AnyCaller, service: CurrentService) -> schemas.Me:
    """The party and the key of this call, and what the party has stored of what it may store."""
    storage = None
    if caller.party.role in STORING:
        with service.readings() as session:
            room = quota.room(session, caller.party.id, service.settings.stored_bytes_per_party)
        storage = schemas.Storage.of(room)
    return schemas.Me(
        party=schemas.Party.of(caller.party),
        key=schemas.UsedKey.of(caller.key),
        storage=storage,
    )


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
    caller: AnyCaller,
    service: CurrentService,
    response: Response,
    body: schemas.NewKey | None = None,
    idempotency_key: IdempotencyKey = None,
) -> schemas.IssuedKey:
    """Give a party a key. The answer shows its secret once; only a hash of it is kept.

    A key that is held to some scopes hands out no others (`403 scopes-exceeded`). Repeated with its
    Idempotency-Key, the call answers with the same key and `secret: null`.
    """
    wanted = body or schemas.NewKey()
    with service.sessions.begin() as session:
        issued = parties.issue_key(
            session,
            party_id,
            expires_in_days=wanted.expires_in_days,
            scopes=wanted.scopes,
            actor=operator.id,
            used=caller.key,
            idempotency_key=idempotency_key,
        )
    response.headers["Cache-Control"] = "no-store"
    return schemas.IssuedKey.of(issued)


@router.get("/keys", summary="List keys")
def list_keys(
    caller: AnyCaller,
    service: CurrentService,
    page: Paging,
    party_id: Annotated[PartyId | None, Query(description="Only those of this party.")] = None,
) -> Page[schemas.Key]:
    """Your keys, everybody's for an operator, newest first, those that have ended too; no secrets."""
    readable = visibility.keys(caller.party)
    if party_id is not None:
        readable = readable.where(ApiKey.party_id == party_id)
    with service.sessions() as session:
        rows, following = pages.rows(session, readable, page)
    return Page(items=[schemas.Key.of(row) for row in rows], next_cursor=following)


@router.post(
    "/keys/{key_id}/rotate",
    status_code=201,
    summary="Replace a key",
    responses=documented(404, 409),
)
def rotate_key(
    *,
    key_id: KeyPath,
    caller: AnyCaller,
    service: CurrentService,
    response: Response,
    body: schemas.Rotation | None = None,
    idempotency_key: IdempotencyKey = None,
) -> schemas.IssuedKey:
    """Replace a key of yours: a new secret, shown once, for as long as the old key was made for.

    The old secret works for `overlap_hours` more. Scopes stay: a key is replaced by itself or by one
    that may do as much (`403 scopes-exceeded`). Rotated keys that still work are never more than
    those that were not rotated (`409`). Repeated with its Idempotency-Key, the call answers with the
    same key and `secret: null`.
    """
    wanted = body or schemas.Rotation()
    with service.sessions.begin() as session:
        issued = parties.rotate_key(
            session,
            caller.key,
            key_id,
            overlap=timedelta(hours=wanted.overlap_hours),
            idempotency_key=idempotency_key,
        )
    response.headers["Cache-Control"] = "no-store"
    return schemas.IssuedKey.of(issued)


@router.delete("/keys/{key_id}", status_code=204, summary="Revoke a key", responses=documented(404))
def revoke_key(key_id: KeyPath, caller: AnyCaller, service: CurrentService) -> None:
    """End the life of a key of yours at once, an operator anybody's. Done again, it changes nothing."""
    with service.sessions.begin() as session:
        parties.revoke_key(session, caller.party, key_id)
