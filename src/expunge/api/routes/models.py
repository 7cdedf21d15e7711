"""Models: add one, set its policy and control images, train fresh weights."""

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from expunge.api import pages
from expunge.api.auth import ModelOwner, Owner
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import jobs as job_schemas
from expunge.api.schemas import models as schemas
from expunge.api.schemas.values import IdempotencyKey, ModelPath
from expunge.api.service import CurrentService
from expunge.api.waiting import accepted
from expunge.registry import drift, fleet, models, policies, visibility
from expunge.registry.tables import Checkpoint, Model, Party

router = APIRouter(tags=["models"], route_class=JsonRoute)


@router.post("/models", status_code=201, summary="Add a model", responses=documented(403, 404, 409))
def create_model(
    body: schemas.NewModel,
    owner: ModelOwner,
    service: CurrentService,
    response: Response,
    idempotency_key: IdempotencyKey = None,
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
            idempotency_key=idempotency_key,
        )
        answer = shown(session, row)
    response.headers["Location"] = f"/models/{answer.id}"
    return answer


@router.get("/models", summary="List models", responses=documented(403))
def list_models(
    owner: Owner, service: CurrentService, page: Paging
) -> Page[schemas.Model | schemas.ModelSummary]:
    """Your own, and, in short, those that were trained on data of yours; newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, visibility.models(owner), page)
        items = [_for_reader(session, row, owner) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get("/models/{model_id}", summary="Show a model", responses=documented(403, 404))
def show_model(
    model_id: ModelPath, owner: Owner, service: CurrentService
) -> schemas.Model | schemas.ModelSummary:
    """All of your own model; of a model that was trained on your data, name and framework."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.models(owner), model_id)
        return _for_reader(session, row, owner)


def shown(session: Session, row: Model) -> schemas.Model:
    """The model as its owner sees it."""
    if row.head_checkpoint_id is None:
        return schemas.Model.of(row, None)
    head = session.get_one(Checkpoint, row.head_checkpoint_id)
    return schemas.Model.of(row, drift.of(session, head, policies.of(row.policy)))


def _for_reader(
    session: Session, row: Model, reader: Party
) -> schemas.Model | schemas.ModelSummary:
    own = row.owner_id == reader.id
    return shown(session, row) if own else schemas.ModelSummary.of(row)


@router.patch("/models/{model_id}/policy", summary="Change policy", responses=documented(403, 404))
def change_policy(
    model_id: ModelPath, body: schemas.PolicyChange, owner: ModelOwner, service: CurrentService
) -> schemas.Model:
    """How requests are taken up and gathered, what is promoted, when a retrain is advised.

    Requests that wait for approval keep waiting, jobs that are queued keep their window.
    """
    with service.sessions.begin() as session:
        return shown(session, models.change_policy(session, owner, model_id, body.given()))


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
        return shown(session, models.set_control(session, owner, model_id, body.dataset_id))


@router.post(
    "/models/{model_id}/pretrain",
    status_code=202,
    summary="Pre-train",
    responses=documented(403, 404, 409),
)
def start_pretraining(
    *,
    model_id: ModelPath,
    body: schemas.Pretraining,
    owner: ModelOwner,
    service: CurrentService,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> job_schemas.Job:
    """Train fresh weights on your own data sets and those granted to you, as a job."""
    with service.sessions.begin() as session:
        row = models.start_pretraining(
            session,
            owner,
            model_id,
            body.dataset_ids,
            body.params,
            seed=body.seed,
            idempotency_key=idempotency_key,
        )
        session.flush()
        session.refresh(row)
        answer = job_schemas.Job.of(row, fleet.unserved(session, [row]).get(row.id))
    accepted(response, f"/jobs/{answer.id}")
    return answer
