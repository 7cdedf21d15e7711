"""Alerts: past requests whose samples a later head seems to know again."""

from fastapi import APIRouter

from expunge.api import pages
from expunge.api.auth import ModelOwner, Owner
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import alerts as schemas
from expunge.api.schemas.values import AlertPath
from expunge.api.service import CurrentService
from expunge.registry import alerts, visibility

router = APIRouter(tags=["alerts"], route_class=JsonRoute)


@router.get("/alerts", summary="List alerts", responses=documented(403))
def list_alerts(owner: Owner, service: CurrentService, page: Paging) -> Page[schemas.Alert]:
    """About your own requests, and those that others made to your models; newest first.

    Whenever another head comes into force, past requests are audited again by the protocol that
    was fixed when they were made.
    """
    with service.sessions() as session:
        rows, following = pages.rows(session, visibility.alerts(owner), page)
        items = [schemas.Alert.of(row) for row in rows]
    return Page(items=items, next_cursor=following)


@router.post(
    "/alerts/{alert_id}/acknowledge",
    summary="Acknowledge an alert",
    responses=documented(403, 404),
)
def acknowledge_alert(
    alert_id: AlertPath, owner: ModelOwner, service: CurrentService
) -> schemas.Alert:
    """Say that you, the model's owner, have taken notice; whoever made the request reads when.

    It stays in the list. Doing so again changes nothing.
    """
    with service.sessions.begin() as session:
        return schemas.Alert.of(alerts.acknowledge(session, owner, alert_id))
