"""Workers and queues: who works, and what there is to do."""

from fastapi import APIRouter

from expunge.api.auth import Operator
from expunge.api.bodies import JsonRoute
from expunge.api.problems import documented
from expunge.api.schemas import fleet as schemas
from expunge.api.service import CurrentService
from expunge.registry import fleet

router = APIRouter(tags=["workers"], route_class=JsonRoute)


@router.get("/workers", summary="Show workers and queues", responses=documented(403))
def show_fleet(operator: Operator, service: CurrentService) -> schemas.Fleet:
    """Every worker with its device, labels and job, how much waits, and what nobody can do."""
    del operator
    with service.sessions() as session:
        workers = fleet.workers(session)
        held = fleet.held(session, [worker.name for worker in workers])
        return schemas.Fleet.of(
            workers,
            held,
            fleet.queues(session),
            fleet.all_unserved(session),
            fleet.now(session),
        )
