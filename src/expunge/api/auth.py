"""Who calls: the bearer key's party and its role. Deny by default: whole routers depend on `authenticated`.

A key is looked up once a call, and before anything of the call's body is read.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from expunge.api import scopes
from expunge.api.hardening import SHARE
from expunge.api.rates import FAILED, address_of
from expunge.api.service import Service, current_service
from expunge.api.tracing import PARTY_ID
from expunge.registry import parties
from expunge.registry.errors import Forbidden, Unauthenticated
from expunge.registry.tables import ApiKey, Party, Role

CALLER = "expunge.caller"
"""Where the caller stands in the connection's scope, once it is known."""
PLACED = "expunge.placed"
"""Likewise, that the call has its place."""
_USE = timedelta(seconds=parties.USE_SECONDS)

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key of a party: `Authorization: Bearer xpk_…`. Operators issue keys.",
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The party that calls and the key that it used."""

    party: Party
    key: ApiKey


async def caller_of(request: Request) -> Caller:
    """The caller of this request, looked up when it is first asked for.

    Raises:
        Unauthenticated: no key, or not a live one.
        ScopeMissing: the key is not for such calls.
        TooManyCalls: the key makes too many, or its address tries too many keys that are none.
    """
    known: Caller | None = request.scope.get(CALLER)
    if known is not None:
        return known
    credentials = await bearer(request)
    if credentials is None:
        raise Unauthenticated("Send a key: Authorization: Bearer xpk_…")
    service = await current_service(request)
    caller = await run_in_threadpool(_met, request, service, credentials.credentials)
    request.scope[CALLER] = caller
    return caller


async def authenticated(
    request: Request,
    # So that the description says how a key is sent.
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Caller:
    """`caller_of`, as routes depend on it."""
    return await caller_of(request)


async def place(request: Request) -> AsyncIterator[None]:
    """A dependency of calls that stay open: a place among those of the caller's key, until the call is over.

    A call that stays open for several reasons has one.

    Raises:
        TooManyOpen: the key has none left.
    """
    if request.scope.get(PLACED):
        yield
        return
    caller, service = await caller_of(request), await current_service(request)
    with service.places.one(caller.key.id):
        request.scope[PLACED] = True
        yield


def _met(request: Request, service: Service, secret: str) -> Caller:
    key = _live_key(request, service, secret)
    request.scope[PARTY_ID] = key.party_id
    scope = scopes.needed_by(request)
    # First: a call that the key is not for costs as much as another.
    request.scope[SHARE] = service.rates.spend(scope, key.id)
    scopes.require(key, scope)
    if key.last_used_at is None or datetime.now(UTC) - key.last_used_at > _USE:
        with service.sessions.begin() as session:
            parties.note_use(session, key.id)
    return Caller(key.party, key)


def _live_key(request: Request, service: Service, secret: str) -> ApiKey:
    address = address_of(request.client.host if request.client else None)
    digest = parties.digest_of(secret)
    service.rates.require_tries(address, digest)
    try:
        with service.readings() as session:
            key = parties.authenticate(session, digest)
    except Unauthenticated:
        service.rates.spend(FAILED, address)
        raise
    service.rates.meet(digest)
    return key


AnyCaller = Annotated[Caller, Depends(authenticated)]


def _require(*roles: Role) -> Callable[[Caller], Awaitable[Party]]:
    async def party(caller: AnyCaller) -> Party:
        if caller.party.role not in roles:
            raise Forbidden(
                f"This call is for {' and '.join(role.value for role in roles)} keys; "
                f"yours is of a {caller.party.role}.",
                allowed=[role.value for role in roles],
            )
        return caller.party

    return party


Operator = Annotated[Party, Depends(_require(Role.OPERATOR))]
ModelOwner = Annotated[Party, Depends(_require(Role.MODEL_OWNER))]
Owner = Annotated[Party, Depends(_require(Role.DATA_OWNER, Role.MODEL_OWNER))]
"""Whoever may own data sets: data owners, and model owners with images of their own."""
OwnerOrAuditor = Annotated[
    Party, Depends(_require(Role.AUDITOR, Role.DATA_OWNER, Role.MODEL_OWNER))
]
"""Whoever may ask what became of data sets: their owners, and auditors for what is delegated to them."""
