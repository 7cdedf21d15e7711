"""The calls about encodings: both encoders' outputs on own samples, and the receipts for them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from expunge.client.calls import Calls, create, get, pages, until_final
from expunge.client.reports import AuditedCheckpoint
from expunge.client.resources import FINAL_AUDIT_STATES, Resource
from expunge.client.transport import Body, content_digest


class Receipt(Resource):
    """What the service answers for; `envelope` is the signed statement, if the service has a key."""

    statement: dict[str, Any]
    envelope: dict[str, Any] | None = None


class Encoding(Resource):
    """Outputs of the encoders before and after a request on own samples."""

    id: str
    request_id: str
    dataset_ids: list[str]
    sample_keys: list[str] | None = None
    draw: dict[str, int] | None = None
    views: int
    seed: int | None = None
    """None where the views were made at home."""
    state: str
    reason: str | None = None
    before: AuditedCheckpoint
    after: AuditedCheckpoint
    receipt: Receipt | None = None
    outputs: str | None = None
    created_at: datetime
    finished_at: datetime | None = None


class EncodingCalls(Calls):
    """What both encoders say about own samples."""

    def encode(
        self,
        request_id: str,
        *,
        dataset_ids: Sequence[str] | None = None,
        sample_keys: Sequence[str] | None = None,
        draw: Mapping[str, int] | None = None,
        views: int | None = None,
        seed: int | None = None,
        wait: bool = True,
        idempotency_key: str | None = None,
    ) -> Encoding:
        """Outputs on registered samples; `draw` is `{"samples": n, "seed": s}`. State may be `failed`."""
        body = {
            "request_id": request_id,
            "dataset_ids": None if dataset_ids is None else list(dataset_ids),
            "sample_keys": None if sample_keys is None else list(sample_keys),
            "draw": None if draw is None else dict(draw),
            "views": views,
            "seed": seed,
        }
        given = Body(json={key: value for key, value in body.items() if value is not None})
        answer = create(self._transport, "/encode", given, idempotency_key, wait=wait)
        return self._settled(Encoding.model_validate(answer), wait=wait)

    def encode_views(
        self,
        request_id: str,
        path: Path,
        *,
        wait: bool = True,
        idempotency_key: str | None = None,
    ) -> Encoding:
        """Outputs on views made at home, a tar as `formats.home_views` writes it. State may be `failed`."""
        answer = create(
            self._transport,
            "/encode/views",
            Body(file=path),
            idempotency_key,
            params={"request_id": request_id},
            headers={"Content-Digest": content_digest(path)},
            wait=wait,
        )
        return self._settled(Encoding.model_validate(answer), wait=wait)

    def _settled(self, first: Encoding, *, wait: bool) -> Encoding:
        if not wait:
            return first
        return until_final(
            first, lambda: self.get_encoding(first.id), FINAL_AUDIT_STATES, self._max_wait
        )

    def encodings(self) -> Iterator[Encoding]:
        """The caller's encodings."""
        return pages(self._transport, "/encodings", Encoding.model_validate)

    def get_encoding(self, encoding_id: str) -> Encoding:
        """One encoding."""
        return Encoding.model_validate(get(self._transport, f"/encodings/{encoding_id}"))

    def encoding_outputs(self, encoding_id: str) -> bytes:
        """The outputs as an npz file, see `evidence.encoding.unpack`."""
        path = f"/encodings/{encoding_id}/outputs.npz"
        return self._transport.send("GET", path, repeatable=True).content
