"""What audits and encodings have in common: which samples of which request are asked about. Records nothing."""

from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import lazyload

from expunge.registry import access, idempotency
from expunge.registry.access import Admission
from expunge.registry.database import Sessions
from expunge.registry.errors import Conflict, Invalid
from expunge.registry.lifecycles import RequestState
from expunge.registry.subsets import Draw, Indexes, Subset, require_known
from expunge.registry.tables import Dataset, Party, Request


class Asked(Protocol):
    """All of a request's data sets if none are named."""

    @property
    def request_id(self) -> str:
        """Of the removal."""

    @property
    def dataset_ids(self) -> tuple[str, ...] | None:
        """Some of its data sets."""

    @property
    def sample_keys(self) -> tuple[str, ...] | None:
        """`key`, or `dst_…/key`."""

    @property
    def draw(self) -> Draw | None:
        """A random part of what the others leave."""

    def call(self, party: Party, idempotency_key: str | None) -> idempotency.Call:
        """The call that asks for it."""


def require_known_keys(
    sessions: Sessions,
    indexes: Indexes,
    party: Party,
    asked: Asked,
    idempotency_key: str | None = None,
) -> None:
    """Refuse sample keys that name no sample; holds no connection while the store is read.

    Raises:
        NotFound, Invalid: see `subset_of` and `access.open_to`; or a key is of no sample.
        ObjectMissing, ObjectDamaged, StoreUnavailable: an index cannot be read.
    """
    if asked.sample_keys is None:
        return
    with sessions() as session:
        if idempotency.recall(session, asked.call(party, idempotency_key)):
            return
        admission = access.open_to(session, party, asked.request_id)
        subset = subset_of(admission, asked)
        datasets = session.scalars(
            select(Dataset)
            .where(Dataset.id.in_(subset.dataset_ids))
            .options(lazyload(Dataset.shards))
        ).all()
    require_known(subset, datasets, indexes)


def subset_of(
    admission: Admission,
    asked: Asked,
) -> Subset:
    """What is asked about, of what may be: all of it if no data sets are named.

    Raises:
        Invalid: no data set is named, or one that is not part of what may be asked about.
    """
    chosen = admission.dataset_ids
    if asked.dataset_ids is not None:
        chosen = sorted(set(asked.dataset_ids))
    if not chosen:
        raise Invalid("dataset_ids is empty; leave it out to audit the whole request.")
    if foreign := sorted(set(chosen) - set(admission.dataset_ids)):
        raise Invalid(
            f"Request {admission.request.id} does not cover {', '.join(foreign)}.",
            allowed=admission.dataset_ids,
        )
    keys = None if asked.sample_keys is None else tuple(sorted(set(asked.sample_keys)))
    return Subset(tuple(chosen), keys, asked.draw)


def compared(request: Request) -> tuple[str, str]:
    """Ids of the checkpoints before and after a request.

    Raises:
        Conflict: it is not completed, or nothing had to be changed for it.
    """
    job = request.job
    if request.state != RequestState.COMPLETED or job is None:
        raise Conflict(
            f"Request {request.id} is {request.state}; an audit compares before and after.",
            state=request.state,
        )
    if job.base_checkpoint_id is None or job.result_checkpoint_id is None:
        raise Conflict(
            f"Nothing had to be changed for request {request.id}: {request.reason}. There is no "
            "before and after to compare.",
        )
    return job.base_checkpoint_id, job.result_checkpoint_id
