"""Encode jobs: what both encoders say about the owner's samples, with a signed receipt. Draws no conclusions.

Views that an owner made at home are encoded only if they were made from the registered images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sqlalchemy import select
from sqlalchemy.orm import joinedload, lazyload

from expunge.evidence import encoding as evidence
from expunge.evidence.audit import Level, Outputs
from expunge.evidence.canonical import canonical
from expunge.evidence.encoding import OWN_VIEWS, PAYLOAD_TYPE, Encoded, Inputs, Weights
from expunge.evidence.manifest import code
from expunge.evidence.views import Bytes, agreement
from expunge.formats.home_views import View, ViewError, index_views, read_views
from expunge.registry import access, encodings, orphans, signing_keys
from expunge.registry.jobs import Failure, Lease
from expunge.registry.objects import fetch
from expunge.registry.signing_keys import NoSigningKey
from expunge.registry.subsets import Chosen, Subset
from expunge.registry.tables import Checkpoint, Dataset, Encoding, Party
from expunge.unlearning.audit import stream_outputs
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import GivenViews
from expunge.worker.auditing import NOT_DELEGATED
from expunge.worker.context import Context
from expunge.worker.encoders import Encoders, Pair
from expunge.worker.leases import Held
from expunge.worker.watching import JobFailed

MAX_NAMED = 5
"""Members that a refusal names."""


@dataclass(frozen=True)
class _Plan:
    """What the database says of an encoding when it starts."""

    row: Encoding
    subset: Subset
    datasets: Sequence[Dataset]
    views: int
    seed: int | None


class Encoder:
    """Runs encode jobs of one worker process."""

    def __init__(self, context: Context, encoders: Encoders) -> None:
        self._context = context
        self._encoders = encoders

    def run(self, held: Held) -> None:
        """Encode what a claimed job asks for and record it.

        Raises:
            JobFailed: the delegation has ended, what is needed was destroyed, a view is refused, or
                the service signs and this process cannot.
            ObjectMissing, ObjectDamaged, and what `Held.patiently` raises.
        """
        plan = held.patiently(lambda: _asked(self._context, held.lease))
        chosen = self._encoders.choose(plan.subset, plan.datasets, held)
        levels = (
            self._encoders.outputs(_pair(plan), chosen, held)
            if plan.row.views_key is None
            else self._of_own_views(plan, chosen, held)
        )
        encoded = Encoded(
            [each.name for each in chosen], [each.sha256 for each in chosen], levels, plan.seed
        )
        data = evidence.pack(encoded)
        held.check()
        held.patiently(partial(self._record, held.lease, plan, encoded, data))

    def _of_own_views(
        self, plan: _Plan, chosen: Sequence[Chosen], held: Held
    ) -> dict[Level, Outputs]:
        pair = _pair(plan)
        before, after = (self._encoders.learner(each, held) for each in (pair.before, pair.after))
        spec = before.spec
        with self._context.scratch(plan.row.id) as folder:
            path, key = folder / "views.tar", str(plan.row.views_key)
            held.patiently(lambda: fetch(self._context.store, key, path, check=held.check))
            try:
                views = _views(path, chosen, spec.image_size)
                pixels = np.stack([read_views(path, each, spec.image_size) for each in views])
            except ViewError as error:
                raise JobFailed(Failure("refused", str(error))) from error
        batches = list(self._encoders.images.read(held, chosen, spec))
        images = np.concatenate([batch.images.numpy() for batch in batches])
        _require_own(views, pixels, images.transpose(0, 2, 3, 1))
        return stream_outputs(
            before,
            after,
            _placed(batches),
            len(chosen),
            views=plan.views,
            device=self._context.settings.device,
            make=_given(pixels, spec).several,
        )

    def _record(self, lease: Lease, plan: _Plan, encoded: Encoded, data: bytes) -> None:
        context = self._context
        with context.scratch(lease.job_id) as folder:
            key = orphans.put_bytes(context.sessions, context.store, data, folder, lease=lease)
        statement = _statement(plan, encoded, data)
        with context.sessions.begin() as session:
            try:
                signer = signing_keys.current(session, context.settings)
            except NoSigningKey as error:
                raise JobFailed(Failure("refused", error.detail)) from error
            envelope = signer and signer.sign(PAYLOAD_TYPE, canonical(statement))
            receipt = {"statement": statement, "envelope": envelope}
            encodings.record(session, lease, key, receipt)


def _asked(context: Context, lease: Lease) -> _Plan:
    with context.sessions() as session:
        sides = [
            joinedload(side).options(lazyload(Checkpoint.datasets))
            for side in (Encoding.before, Encoding.after)
        ]
        query = select(Encoding).where(Encoding.job_id == lease.job_id).options(*sides)
        row = session.scalars(query).one()
        params = row.job.params
        subset = Subset.of(params)
        party = session.get_one(Party, row.party_id)
        if not access.covers(session, party, row.request_id, subset.dataset_ids):
            raise JobFailed(NOT_DELEGATED)
        datasets = session.scalars(select(Dataset).where(Dataset.id.in_(subset.dataset_ids))).all()
        return _Plan(row, subset, datasets, params["views"], params["seed"])


def _pair(plan: _Plan) -> Pair:
    return Pair(plan.row.before, plan.row.after, plan.views, plan.seed or 0)


def _views(path: Path, chosen: Sequence[Chosen], image_size: int) -> list[list[View]]:
    """The tar's views of each chosen sample."""
    max_views = encodings.max_own_views(image_size)
    found = index_views(path, image_size, max_samples=encodings.MAX_SAMPLES, max_views=max_views)
    by_sample = {of_sample[0].sample: of_sample for of_sample in found}
    return [by_sample[f"{each.dataset.id}/{each.key}"] for each in chosen]


def _require_own(views: Sequence[Sequence[View]], pixels: Bytes, images: Bytes) -> None:
    """Refuse views, (N, V, S, S, 3), that are not made from the (N, S, S, 3) registered images."""
    refused: list[str] = []
    for number in range(pixels.shape[1]):
        of_number = [each[number] for each in views]
        boxes = np.array([view.crop for view in of_number])
        flips = np.array([view.flip for view in of_number])
        found = agreement(pixels[:, number], images, boxes, flips)
        refused += [
            f"{of_number[place].member} (correlation {found.correlation[place]:.2f}, contrast "
            f"{found.contrast[place]:.3f})"
            for place in np.flatnonzero(~found.made_from)
        ]
    if refused:
        more = f" and {len(refused) - MAX_NAMED:,} more" if len(refused) > MAX_NAMED else ""
        raise JobFailed(
            Failure(
                "refused",
                "not recognised as views of the registered samples, or too flat to tell: "
                f"{', '.join(refused[:MAX_NAMED])}{more}",
            )
        )


def _placed(batches: Sequence[ImageSet]) -> Iterator[ImageSet]:
    """The batches with each sample's place among all as its id, as `GivenViews` takes them."""
    start = 0
    for batch in batches:
        yield replace(batch, ids=torch.arange(start, start + len(batch)))
        start += len(batch)


def _given(pixels: Bytes, spec: EncoderSpec) -> GivenViews:
    """From (N, V, S, S, 3)."""
    tensor = torch.from_numpy(pixels).permute(1, 0, 4, 2, 3)
    return GivenViews(tensor, spec.mean, spec.std)


def _statement(plan: _Plan, encoded: Encoded, data: bytes) -> dict[str, Any]:
    row = plan.row
    inputs = (
        Inputs.registered(encoded.digests)
        if row.views_key is None
        else Inputs(OWN_VIEWS, len(encoded.keys), f"sha256:{row.views_key.rpartition('/')[2]}")
    )
    return evidence.statement(
        encoding_id=row.id,
        request_id=row.request_id,
        before=Weights(row.before.id, row.before.digest, row.before.release_digest),
        after=Weights(row.after.id, row.after.digest, row.after.release_digest),
        inputs=inputs,
        encoded=encoded,
        data=data,
        code_version=code(),
        issued_at=datetime.now(UTC).isoformat(),
    )
