"""Who may ask what of the encoders before and after a request, and how much of it in a day. Asks nothing itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, Self

from sqlalchemy import BigInteger, Select, cast, func, or_, select
from sqlalchemy.orm import Session

from expunge.registry import log
from expunge.registry.errors import DomainError, NotFound
from expunge.registry.settings import Settings
from expunge.registry.tables import (
    Delegation,
    DelegationDataset,
    Party,
    Query,
    Request,
    RequestDataset,
)

QUERIED = "queried"
"""The log's event of an admitted query."""
RESERVED = "reserved"
"""The log's event of a query that was charged before its content came."""


class Reader(Protocol):
    """Who looks: a party, or what stands for one in a statement that is built once for all of them."""

    @property
    def id(self) -> Any:
        """Of the party, or the parameter that takes it."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A party of whom no more than its id has to be known."""

    id: str


class BudgetSpent(DomainError):
    """The queries of a request are used up for today (UTC)."""

    slug, title, status = "budget-spent", "Query budget spent", 429


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be asked about one request in one day (UTC), by its owner and auditors together."""

    queries: int
    sample_views: int
    """Samples times views of each."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the operator set it."""
        return cls(settings.audit_budget_per_day, settings.audit_sample_views_per_day)


STANDARD = Budget(queries=200, sample_views=2_000_000)
"""Where the operator sets nothing else."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request, and those of its data sets that the party may ask about."""

    request: Request
    dataset_ids: list[str]


def live_delegations(auditor: Reader) -> Select[Delegation]:
    """Delegations to this auditor that are neither withdrawn nor expired."""
    return select(Delegation).where(
        Delegation.auditor_id == auditor.id,
        Delegation.withdrawn_at.is_(None),
        Delegation.expires_at > func.now(),
    )


def delegated_datasets(auditor: Reader) -> Select[str]:
    """Ids of the data sets that this auditor may look at now."""
    live = live_delegations(auditor).subquery()
    return select(DelegationDataset.dataset_id).where(
        DelegationDataset.delegation_id.in_(select(live.c.id))
    )


def open_to(session: Session, party: Reader, request_id: str) -> Admission:
    """The request as the party may ask about it: all of an own one, else what is delegated.

    Raises:
        NotFound: there is no such request, or nothing of it is the party's or delegated to it.
    """
    delegated = delegated_datasets(party)
    covering = select(RequestDataset.request_id).where(RequestDataset.dataset_id.in_(delegated))
    # One statement: what is another's takes as long to refuse as what is not there.
    request = session.scalar(
        select(Request).where(
            Request.id == request_id,
            or_(Request.owner_id == party.id, Request.id.in_(covering)),
        )
    )
    if request is None:
        raise NotFound.of("request", request_id)
    if request.owner_id == party.id:
        return Admission(request, request.dataset_ids)
    allowed = set(session.scalars(delegated))
    return Admission(request, [each for each in request.dataset_ids if each in allowed])


def covers(session: Session, party: Reader, request_id: str, dataset_ids: Iterable[str]) -> bool:
    """Whether the party may ask about all of these data sets of a request now."""
    try:
        admission = open_to(session, party, request_id)
    except NotFound:
        return False
    return set(dataset_ids) <= set(admission.dataset_ids)


def reserve(
    session: Session,
    party: Party,
    request_id: str,
    *,
    kind: Literal["audit", "encode"],
    budget: Budget = STANDARD,
) -> int:
    """Charge a query before its content comes, which costs the service work even if it is refused then.

    What it asks about is charged by `charge`, which takes the answer: the query's number.

    Raises:
        NotFound: there is no such request, or nothing of it is the party's or delegated to it.
        BudgetSpent: no query is left of the budget of the day.
    """
    open_to(session, party, request_id)
    _lock(session, request_id)
    _check(session, request_id, budget, 0)
    query = Query(request_id=request_id, party_id=party.id, kind=kind, samples=0, views=0)
    session.add(query)
    log.append(session, party.id, request_id, RESERVED, kind=kind)
    session.flush()
    return query.id


def charge(
    session: Session,
    party: Party,
    admission: Admission,
    *,
    kind: Literal["audit", "encode"],
    samples: int,
    views: int = 1,
    budget: Budget = STANDARD,
    reserved: int | None = None,
) -> None:
    """Charge the party a query about a request that is open to it: `samples` times `views`.

    The charge and its log row exist exactly if the surrounding transaction commits: what is refused
    later costs nothing, unless it was reserved. The request is only read; what two calls charge at
    once is kept apart by an advisory lock that nothing else takes.

    Raises:
        BudgetSpent: it would be more than the budget of the day.
    """
    request_id = admission.request.id
    _lock(session, request_id)
    _check(session, request_id, budget, samples * views, charged=reserved is not None)
    if reserved is None:
        session.add(
            Query(request_id=request_id, party_id=party.id, kind=kind, samples=samples, views=views)
        )
    else:
        query = session.get_one(Query, reserved)
        query.samples, query.views = samples, views
    log.append(session, party.id, request_id, QUERIED, kind=kind, samples=samples, views=views)


def _lock(session: Session, request_id: str) -> None:
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(request_id, 0))))


def _check(
    session: Session, request_id: str, budget: Budget, wanted: int, *, charged: bool = False
) -> None:
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    queries, sample_views = session.execute(
        select(
            func.count(), func.coalesce(func.sum(cast(Query.samples, BigInteger) * Query.views), 0)
        ).where(Query.request_id == request_id, Query.at >= today)
    ).one()
    if queries < budget.queries + charged and sample_views + wanted <= budget.sample_views:
        return
    until_midnight = (today + timedelta(days=1) - now).total_seconds()
    raise BudgetSpent(
        f"Request {request_id} takes {budget.queries:,} queries a day (UTC), of "
        f"{budget.sample_views:,} views of samples together; {queries:,} queries of "
        f"{sample_views:,} views were made today, and this one has {wanted:,}.",
        allowed={"queries": budget.queries, "sample_views": budget.sample_views},
        used={"queries": queries, "sample_views": int(sample_views)},
        retry_after_seconds=int(until_midnight) + 1,
    )
