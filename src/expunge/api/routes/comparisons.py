"""Comparisons: which method a model's owner should use for a removal, measured on their own model."""

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import defer
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import ModelOwner
from expunge.api.bodies import JsonRoute
from expunge.api.downloads import Wanted, documented_download, stream_object
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import comparisons as schemas
from expunge.api.schemas.jobs import Cancellation
from expunge.api.schemas.values import FINAL_WORK_STATES, ComparisonPath, IdempotencyKey
from expunge.api.service import CurrentService, Service
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.registry import comparisons, steering, tables, visibility
from expunge.registry.errors import NotFound

CSV = "text/csv; charset=utf-8"
MEDIA_TYPES = {
    "table.json": "application/json",
    "table.csv": CSV,
    "table.md": "text/markdown; charset=utf-8",
    "chart.png": "image/png",
    "scores.csv": CSV,
}

router = APIRouter(tags=["comparisons"], route_class=JsonRoute)


@router.post(
    "/comparisons",
    status_code=202,
    summary="Compare methods",
    responses=when_waited(schemas.Comparison) | documented(403, 404, 409),
)
async def create_comparison(
    *,
    body: schemas.NewComparison,
    owner: ModelOwner,
    service: CurrentService,
    wait: WaitSeconds,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Comparison:
    """Run unlearning methods side by side on your model's head and measure what each leaves behind.

    Changes nothing: no checkpoint, no request. The test set is the model's control data set.
    `Prefer: wait=N` answers 200 with the final result.
    """
    first = await run_in_threadpool(_create, service, owner, body, idempotency_key)
    answer = await until_final(first, lambda: _read(service, owner, first.id), _is_done, wait)
    accepted(response, f"/comparisons/{first.id}", final=_is_done(answer), waited=wait)
    return answer


def _create(
    service: Service, owner: tables.Party, body: schemas.NewComparison, key: str | None
) -> schemas.Comparison:
    with service.sessions.begin() as session:
        row = comparisons.create(
            session,
            owner,
            model_id=body.model_id,
            dataset_ids=body.dataset_ids,
            plan=body.plan(),
            idempotency_key=key,
        )
        session.refresh(row)
        return schemas.Comparison.of(row)


def _is_done(comparison: schemas.Comparison) -> bool:
    return comparison.state in FINAL_WORK_STATES


def _read(service: Service, owner: tables.Party, comparison_id: str) -> schemas.Comparison:
    with service.sessions() as session:
        row = visibility.one(session, visibility.comparisons(owner), comparison_id)
        return schemas.Comparison.of(row)


@router.get("/comparisons", summary="List comparisons", responses=documented(403))
def list_comparisons(
    owner: ModelOwner, service: CurrentService, page: Paging
) -> Page[schemas.ComparisonSummary]:
    """Your comparisons, newest first, without their results."""
    with service.sessions() as session:
        readable = visibility.comparisons(owner).options(defer(tables.Comparison.result))
        rows, following = pages.rows(session, readable, page)
        items = [schemas.ComparisonSummary.of(row) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get(
    "/comparisons/{comparison_id}", summary="Show a comparison", responses=documented(403, 404)
)
def show_comparison(
    comparison_id: ComparisonPath, owner: ModelOwner, service: CurrentService
) -> schemas.Comparison:
    """State, progress while it runs, table and recommended setting once it is done."""
    return _read(service, owner, comparison_id)


@router.post(
    "/comparisons/{comparison_id}/cancel",
    summary="Cancel a comparison",
    responses=documented(403, 404, 409),
)
def cancel_comparison(
    comparison_id: ComparisonPath,
    owner: ModelOwner,
    service: CurrentService,
    body: Cancellation | None = None,
) -> schemas.Comparison:
    """End it while it waits or runs; nothing of it is kept. Doing so again changes nothing."""
    reason = body.reason if body is not None else None
    with service.sessions.begin() as session:
        row = steering.cancel_comparison(session, owner, comparison_id, reason)
        return schemas.Comparison.of(row)


@router.get(
    "/comparisons/{comparison_id}/table.{suffix}",
    summary="Download the table",
    response_class=StreamingResponse,
    responses=documented_download(
        "The file.", *sorted({MEDIA_TYPES[f"table.{each}"] for each in ("json", "csv", "md")})
    ),
)
def download_table(
    comparison_id: ComparisonPath,
    suffix: schemas.TableFormat,
    owner: ModelOwner,
    service: CurrentService,
    wanted: Wanted,
) -> Response:
    """A row a setting: measures, gaps to Retrain, average gap, forgetting score, minutes."""
    return _download(service, owner, comparison_id, f"table.{suffix}", wanted)


@router.get(
    "/comparisons/{comparison_id}/chart.png",
    summary="Download the chart",
    response_class=StreamingResponse,
    responses=documented_download("The file.", MEDIA_TYPES["chart.png"]),
)
def download_chart(
    comparison_id: ComparisonPath, owner: ModelOwner, service: CurrentService, wanted: Wanted
) -> Response:
    """The settings by gap, and forgetting against utility."""
    return _download(service, owner, comparison_id, "chart.png", wanted)


@router.get(
    "/comparisons/{comparison_id}/scores.csv",
    summary="Download the spread of scores",
    response_class=StreamingResponse,
    responses=documented_download("The file.", CSV),
)
def download_scores(
    comparison_id: ComparisonPath, owner: ModelOwner, service: CurrentService, wanted: Wanted
) -> Response:
    """How the scores of the samples to be forgotten are spread: means of groups of at least 20, no single one."""
    return _download(service, owner, comparison_id, "scores.csv", wanted)


def _download(
    service: Service, owner: tables.Party, comparison_id: str, name: str, wanted: Wanted
) -> Response:
    with service.sessions() as session:
        row = visibility.one(session, visibility.comparisons(owner), comparison_id)
    key = (row.objects or {}).get(name)
    if key is None:
        raise NotFound(f"Comparison {comparison_id} has no {name} (yet).")
    return stream_object(service.store, key, MEDIA_TYPES[name], wanted)
