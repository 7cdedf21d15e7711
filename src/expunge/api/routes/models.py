"""Models: add one, set its policy and control images, train fresh weights."""

from fastapi import APIRouter, Response

from expunge.api import pages
from expunge.api.auth import ModelOwner, Owner
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import jobs as job_schemas
from expunge.api.schemas import models as schemas
from expunge.api.schemas.values import ModelPath
from expunge.api.service import CurrentService
from expunge.api.waiting import accepted
from expunge.registry import models, visibility

router = APIRouter(tags=["models"], route_class=JsonRoute)


@router.post("/models", status_code=201, summary="Add a model", responses=documented(403, 404, 409))
def create_model(
    body: schemas.NewModel, owner: ModelOwner, service: CurrentService, response: Response
) -> schemas.Model:
    """A model without weights: pre-train it here, or upload a checkpoint."""
    with service.sessions.begin() as session:
        row = models.create(
            session,
            owner,
            body.name,
            body.encoder,
            policy=body.policy,
            control_dataset_id=body.control_dataset_id,
        )
    response.headers["Location"] = f"/models/{row.id}"
    return schemas.Model.of(row)


@router.get("/models", summary="List models", responses=documented(403))
def list_models(
    owner: Owner, service: CurrentService, page: Paging
) -> Page[schemas.Model | schemas.ModelSummary]:
    """Your own, and, in short, those that were trained on data of yours; newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, visibility.models(owner), page)
    return Page(items=[schemas.for_reader(row, owner) for row in rows], next_cursor=following)


@router.get("/models/{model_id}", summary="Show a model", responses=documented(403, 404))
def show_model(
    model_id: ModelPath, owner: Owner, service: CurrentService
) -> schemas.Model | schemas.ModelSummary:
    """All of your own model; of a model that was trained on your data, name and framework."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.models(owner), model_id)
    return schemas.for_reader(row, owner)


@router.patch("/models/{model_id}/policy", summary="Change policy", responses=documented(403, 404))
def change_policy(
    model_id: ModelPath, body: schemas.PolicyChange, owner: ModelOwner, service: CurrentService
) -> schemas.Model:
    """Batching window and promotion. Jobs that are queued already keep their window."""
    with service.sessions.begin() as session:
        row = models.change_policy(session, owner, model_id, body.given())
    return schemas.Model.of(row)


@router.put(
    "/models/{model_id}/control",
    summary="Set control images",
    responses=documented(403, 404, 409),
)
def set_control(
    model_id: ModelPath, body: schemas.NewControl, owner: ModelOwner, service: CurrentService
) -> schemas.Model:
    """Images that were never trained on and never will be: what audits compare with."""
    with service.sessions.begin() as session:
        row = models.set_control(session, owner, model_id, body.dataset_id)
    return schemas.Model.of(row)


@router.post(
    "/models/{model_id}/pretrain",
    status_code=202,
    summary="Pre-train",
    responses=documented(403, 404, 409),
)
def start_pretraining(
    model_id: ModelPath,
    body: schemas.Pretraining,
    owner: ModelOwner,
    service: CurrentService,
    response: Response,
) -> job_schemas.Job:
    """Train fresh weights on your own data sets and those granted to you, as a job."""
    with service.sessions.begin() as session:
        row = models.start_pretraining(
            session, owner, model_id, body.dataset_ids, body.params, seed=body.seed
        )
        session.flush()
        session.refresh(row)
        answer = job_schemas.Job.of(row)
    accepted(response, f"/jobs/{answer.id}")
    return answer
