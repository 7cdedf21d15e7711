"""Estimates: what forgetting would take, before anybody chooses how."""

from fastapi import APIRouter

from expunge.api.auth import Owner
from expunge.api.bodies import JsonRoute
from expunge.api.problems import documented
from expunge.api.schemas import estimates as schemas
from expunge.api.service import CurrentService
from expunge.registry import estimates

router = APIRouter(tags=["estimates"], route_class=JsonRoute)


@router.post("/estimates", summary="Estimate time and cost", responses=documented(403, 404, 409))
def estimate_removal(
    body: schemas.NewEstimate, owner: Owner, service: CurrentService
) -> schemas.Estimates:
    """How long each method would take to forget data sets, and what it would cost. Changes nothing.

    Data owners ask about their own data sets, a model's owner about all that the model retains.
    """
    with service.sessions() as session:
        found = estimates.estimate(
            session,
            owner,
            model_id=body.model_id,
            dataset_ids=body.dataset_ids,
            methods=body.chosen(),
        )
    return schemas.Estimates(items=[schemas.Estimate.of(each, service.settings) for each in found])
