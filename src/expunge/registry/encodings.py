"""Encodings: what both encoders of a request say about its owner's samples, for audits that do not trust the service.

Decides who may ask for how much, and records the answer. Never runs an encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from expunge.evidence.protocol import views_seed
from expunge.registry import access, idempotency, jobs, orphans, retention, waiting
from expunge.registry.access import STANDARD, Budget
from expunge.registry.asking import compared, subset_of
from expunge.registry.errors import Invalid
from expunge.registry.ids import Prefix, new_id
from expunge.registry.subsets import Draw
from expunge.registry.tables import Encoding, JobKind, Model, Party

MAX_SAMPLES = 1024
"""Of one encoding: so many are represented whole in an audit."""
MAX_SAMPLE_VIEWS = 16_384
"""Of one encoding: the outputs of a ResNet-18 with projector then take some 84 MB."""

MAX_OWN_VIEW_PIXELS = 64 * 2**20
"""Of all views made at home in one encoding: 192 MB in a worker's memory."""


@dataclass(frozen=True, slots=True)
class OwnViews:
    """Views that the owner made at home: a stored tar, and the samples that it says they are made from."""

    object_key: str
    digest: str
    """Of the tar, `sha256:<hex>`."""
    dataset_ids: tuple[str, ...]
    samples: tuple[str, ...]
    """`dst_…/key`, in the tar's order."""
    views: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request is encoded: registered samples under views of a seed, or views made at home."""

    request_id: str
    views: int
    seed: int | None
    """Of the service's views; none: that of its own audits of the model."""
    dataset_ids: tuple[str, ...] | None = None
    sample_keys: tuple[str, ...] | None = None
    draw: Draw | None = None
    own_views: OwnViews | None = None

    @classmethod
    def of_views(cls, request_id: str, own: OwnViews) -> "Asked":
        """An encoding of views made at home."""
        return cls(request_id, own.views, None, own.dataset_ids, own.samples, None, own)

    def views_seed(self, model_id: str) -> int | None:
        """Of the views of this model's encoders; none where they were made at home."""
        if self.own_views is not None:
            return None
        return views_seed(model_id) if self.seed is None else self.seed

    def call(self, party: Party, idempotency_key: str | None) -> idempotency.Call:
        """The call that asks for it."""
        own = self.own_views
        content = (
            [self.request_id, own.digest]
            if own is not None
            else [
                self.request_id,
                None if self.dataset_ids is None else sorted(set(self.dataset_ids)),
                None if self.sample_keys is None else sorted(set(self.sample_keys)),
                None if self.draw is None else [self.draw.samples, self.draw.seed],
                self.views,
                self.seed,
            ]
        )
        return idempotency.Call(party.id, idempotency_key, "create-encoding", content)


def max_own_views(image_size: int) -> int:
    """How many views made at home one encoding takes, of images of so many pixels a side."""
    return min(MAX_SAMPLE_VIEWS, MAX_OWN_VIEW_PIXELS // image_size**2)


def image_size(session: Session, party: Party, request_id: str) -> int:
    """Height and width, in pixels, that the encoders of a request take.

    Raises:
        NotFound: there is no such request that the party may ask about.
    """
    admission = access.open_to(session, party, request_id)
    model = session.get_one(Model, admission.request.model_id)
    return int(model.encoder["image_size"])


def reserve(
    session: Session,
    party: Party,
    request_id: str,
    *,
    digest: str,
    budget: Budget = STANDARD,
    idempotency_key: str | None = None,
) -> int | None:
    """Charge an encoding of views made at home before they are sent; `digest` is announced, `sha256:<hex>`.

    The answer is for `create`; none for a call that was made before.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound: there is no such request that the party may ask about.
        Conflict: the request is not completed, or has no before and after.
        BudgetSpent: no query is left of the budget of the day.
    """
    call = idempotency.Call(party.id, idempotency_key, "create-encoding", [request_id, digest])
    if idempotency.recall(session, call):
        return None
    compared(access.open_to(session, party, request_id).request)
    return access.reserve(session, party, request_id, kind="encode", budget=budget)


def create(
    session: Session,
    party: Party,
    asked: Asked,
    *,
    budget: Budget = STANDARD,
    reserved: int | None = None,
    idempotency_key: str | None = None,
) -> Encoding:
    """Queue an encoding about a completed request, for its owner or an auditor of the owner's.

    With the key and content of an earlier call, the answer is that call's encoding. Sample keys are
    taken as `asking.require_known_keys` left them.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound: there is no such request that the party may ask about.
        BudgetSpent: so many samples and views are more than what is left of the day's budget.
        Conflict: the request is not completed, or has no before and after.
        CheckpointDestroyed, DatasetDeleted: what it would encode is gone.
        Invalid: a data set is not part of what the party may ask about, or it is too much at once.
    """
    encoding_id = new_id(Prefix.ENCODING)
    if earlier := idempotency.remember(session, asked.call(party, idempotency_key), encoding_id):
        return session.get_one(Encoding, earlier)
    admission = access.open_to(session, party, asked.request_id)
    request, subset = admission.request, subset_of(admission, asked)
    before, after = compared(request)
    held = retention.hold(session, checkpoint_ids=[before, after], dataset_ids=subset.dataset_ids)
    samples = subset.count(sum(each.samples for each in held))
    _require_few(samples, asked.views)
    access.charge(
        session,
        party,
        admission,
        kind="encode",
        samples=samples,
        views=asked.views,
        budget=budget,
        reserved=reserved,
    )
    job = waiting.enqueue(
        session,
        JobKind.ENCODE,
        actor=party.id,
        owner_id=party.id,
        params={
            "encoding_id": encoding_id,
            **subset.to_params(),
            "views": asked.views,
            "seed": asked.views_seed(request.model_id),
        },
    )
    own = asked.own_views
    row = Encoding(
        id=encoding_id,
        request_id=request.id,
        owner_id=request.owner_id,
        party_id=party.id,
        job_id=job.id,
        before_checkpoint_id=before,
        after_checkpoint_id=after,
        views_key=None if own is None else own.object_key,
    )
    session.add(row)
    session.flush()
    if own is not None:
        orphans.named(session, [own.object_key])
    return row


def _require_few(samples: int, views: int) -> None:
    if samples > MAX_SAMPLES or samples * views > MAX_SAMPLE_VIEWS:
        raise Invalid(
            f"{samples:,} samples with {views} views each are more than one encoding holds; ask "
            "for a part of them (`sample_keys`, `draw`).",
            allowed={"samples": MAX_SAMPLES, "sample_views": MAX_SAMPLE_VIEWS},
        )


def record(session: Session, lease: jobs.Lease, outputs_key: str, receipt: dict[str, Any]) -> None:
    """End an encode job with the object of its outputs and the receipt for them.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = jobs.succeed(session, lease)
    row = session.get_one(Encoding, job.params["encoding_id"])
    row.outputs_key = outputs_key
    row.receipt = receipt
    orphans.named(session, [outputs_key])


def samples_of(views: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The data sets and the samples (`dst_…/key`) that views are made from, each once."""
    samples = tuple(dict.fromkeys(views))
    return tuple(sorted({each.partition("/")[0] for each in samples})), samples
