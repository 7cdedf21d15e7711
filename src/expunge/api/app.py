"""The application: resources opened and closed, routers put together, keys demanded by default."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, Depends, FastAPI

from expunge.api import metering, openapi, problems
from expunge.api.auth import authenticated
from expunge.api.drawings import Drawings
from expunge.api.endings import Endings
from expunge.api.hardening import Hardening
from expunge.api.places import Places
from expunge.api.rates import RateLimits
from expunge.api.readiness import Readiness, checks_of
from expunge.api.routes import (
    alerts,
    audits,
    certificates,
    checkpoint_parts,
    checkpoints,
    comparisons,
    datasets,
    delegations,
    direct_uploads,
    encodings,
    estimates,
    fleet,
    health,
    jobs,
    log,
    methods,
    metrics,
    models,
    parties,
    requests,
    signing_keys,
)
from expunge.api.service import Service
from expunge.api.space import Space
from expunge.api.tenure import Tenure
from expunge.api.tracing import RequestTracing
from expunge.registry import spans
from expunge.registry.database import connect, readings, sessions
from expunge.registry.logs import configure_logging
from expunge.registry.objects import open_store
from expunge.registry.scratch import Scratch
from expunge.registry.settings import Settings
from expunge.registry.subsets import Indexes
from expunge.registry.vitals import Vitals

POOL_SIZE = 30
"""With SQLAlchemy's overflow of 10: as many connections as the server has handler threads."""

OPEN = (health.router, methods.router, signing_keys.router)
"""The only routers that answer without a key; that of the metrics checks its own."""
KEYED = (
    requests.router,
    jobs.router,
    parties.router,
    datasets.router,
    datasets.uploads,
    direct_uploads.router,
    models.router,
    checkpoints.router,
    checkpoint_parts.router,
    checkpoint_parts.uploads,
    estimates.router,
    fleet.router,
    delegations.router,
    encodings.router,
    encodings.uploads,
    audits.router,
    certificates.router,
    alerts.router,
    comparisons.router,
    log.router,
)
"""What is asked for most often first: routes are tried in this order, at some 10 µs each."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service over these settings; over those of the environment if there are none given."""
    resolved = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging()
        spans.start(resolved, "expunge-api")
        scratch = Scratch(resolved.work_dir)
        own = resolved.model_copy(update={"work_dir": scratch.path})
        engine = connect(resolved.database_url, pool_size=POOL_SIZE)
        store, endings = open_store(resolved), Endings(engine)
        rates = RateLimits.of(resolved)
        endings.start()
        app.state.service = Service(
            own,
            engine,
            sessions(engine),
            readings(engine),
            store,
            indexes=Indexes(store),
            endings=endings,
            drawings=Drawings(store),
            rates=rates,
            places=Places(resolved.open_calls_per_key),
            space=Space(scratch.path),
            readiness=Readiness(checks_of(own, engine, store, rates)),
            vitals=Vitals(sessions(engine)),
        )
        yield
        endings.stop()
        rates.close()
        engine.dispose()
        scratch.close()
        metering.leave()
        spans.stop()

    app = FastAPI(
        redirect_slashes=False,  # These go to whatever host the caller named.
        title=openapi.TITLE,
        version=version("expunge"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    app.add_middleware(Tenure)
    app.add_middleware(RequestTracing)
    app.add_middleware(
        Hardening,
        stall_seconds=resolved.body_stall_seconds,
        bytes_per_second=resolved.body_bytes_per_second,
    )
    app.add_middleware(metering.Metering)
    for router in (*OPEN, metrics.router):
        app.include_router(router)
    keyed = APIRouter(dependencies=[Depends(authenticated)])
    for router in KEYED:
        keyed.include_router(router)
    app.include_router(keyed)
    openapi.install(app)
    return app
