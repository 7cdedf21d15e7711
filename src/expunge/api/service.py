"""What every handler needs of its process: settings, database, objects, news of jobs. Opened once, by the app."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from expunge.api.drawings import Drawings
from expunge.api.endings import Endings
from expunge.api.places import Places
from expunge.api.rates import RateLimits
from expunge.api.readiness import Readiness
from expunge.api.space import Space
from expunge.registry.database import Sessions
from expunge.registry.objects import ObjectStore
from expunge.registry.settings import Settings
from expunge.registry.subsets import Indexes
from expunge.registry.vitals import Vitals


@dataclass(frozen=True, slots=True)
class Service:
    """The open resources of this process."""

    settings: Settings
    engine: Engine
    sessions: Sessions
    readings: Sessions
    """For calls that write nothing."""
    store: ObjectStore
    indexes: Indexes
    endings: Endings
    drawings: Drawings
    rates: RateLimits
    places: Places
    space: Space
    readiness: Readiness
    vitals: Vitals


async def current_service(request: Request) -> Service:
    """The service that the app's lifespan opened; async, since any other dependency costs a thread."""
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(current_service)]
