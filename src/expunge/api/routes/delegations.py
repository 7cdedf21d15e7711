"""Delegations: let an auditor audit some of your data sets, until a day or until you withdraw it."""

from fastapi import APIRouter

from expunge.api import pages
from expunge.api.auth import Owner, OwnerOrAuditor
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import delegations as schemas
from expunge.api.schemas.values import DelegationPath, IdempotencyKey
from expunge.api.service import CurrentService
from expunge.registry import delegations, visibility

router = APIRouter(tags=["delegations"], route_class=JsonRoute)


@router.post(
    "/delegations",
    status_code=201,
    summary="Name an auditor",
    responses=documented(403, 404, 409),
)
def create_delegation(
    body: schemas.NewDelegation,
    owner: Owner,
    service: CurrentService,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Delegation:
    """Let an auditor see the samples' names of your sealed data sets, and audit what became of them."""
    with service.sessions.begin() as session:
        row = delegations.create(
            session,
            owner,
            auditor_id=body.auditor_id,
            dataset_ids=body.dataset_ids,
            expires_at=body.expires_at,
            idempotency_key=idempotency_key,
        )
        return schemas.Delegation.of(row)


@router.get("/delegations", summary="List delegations", responses=documented(403))
def list_delegations(
    party: OwnerOrAuditor, service: CurrentService, page: Paging
) -> Page[schemas.Delegation]:
    """Those that you gave or were given, ended ones too; newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, visibility.delegations(party), page)
        items = [schemas.Delegation.of(row) for row in rows]
    return Page(items=items, next_cursor=following)


@router.delete(
    "/delegations/{delegation_id}",
    status_code=204,
    summary="Withdraw a delegation",
    responses=documented(403, 404),
)
def withdraw_delegation(
    delegation_id: DelegationPath, owner: Owner, service: CurrentService
) -> None:
    """From now on the auditor sees nothing of it any more. Withdrawing it again changes nothing."""
    with service.sessions.begin() as session:
        delegations.withdraw(session, owner, delegation_id)
