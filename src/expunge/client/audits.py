"""The calls about audits, and their matrices."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from expunge.client import resources as r
from expunge.client.calls import Calls, create, get, pages, until_final
from expunge.client.reports import Audit
from expunge.client.transport import Body


class AuditCalls(Calls):
    """What became of the caller's own samples."""

    def audit(
        self,
        request_id: str,
        *,
        dataset_ids: Sequence[str] | None = None,
        sample_keys: Sequence[str] | None = None,
        draw: Mapping[str, int] | None = None,
        matrix_size: int | None = None,
        views: int | None = None,
        seed: int | None = None,
        wait: bool = True,
        idempotency_key: str | None = None,
    ) -> Audit:
        """Audit a completed request over the caller's own samples; state may be `failed`.

        `sample_keys` are `key`, or `dst_…/key` where there are several data sets; `draw` is
        `{"samples": n, "seed": s}`, a random part of what the others leave.
        """
        body = {
            "request_id": request_id,
            "dataset_ids": None if dataset_ids is None else list(dataset_ids),
            "sample_keys": None if sample_keys is None else list(sample_keys),
            "draw": None if draw is None else dict(draw),
            "matrix_size": matrix_size,
            "views": views,
            "seed": seed,
        }
        given = Body(json={key: value for key, value in body.items() if value is not None})
        answer = create(self._transport, "/audit", given, idempotency_key, wait=wait)
        first = Audit.model_validate(answer)
        if not wait:
            return first
        return until_final(
            first, lambda: self.get_audit(first.id), r.FINAL_AUDIT_STATES, self._max_wait
        )

    def audits(self) -> Iterator[Audit]:
        """The caller's audits."""
        return pages(self._transport, "/audits", Audit.model_validate)

    def get_audit(self, audit_id: str) -> Audit:
        """One audit."""
        return Audit.model_validate(get(self._transport, f"/audits/{audit_id}"))

    def matrix(
        self, audit_id: str, which: r.Which, level: r.Level = "encoder"
    ) -> npt.NDArray[np.float32]:
        """An alignment matrix or the gap matrix: (m, m) float32."""
        content = self._matrix_file(audit_id, f"{which}.npy", level)
        matrix: npt.NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
        return matrix

    def download_picture(self, audit_id: str, which: r.Picture, level: r.Level, path: Path) -> Path:
        """Write a matrix's picture, or that of the scores, to `path`, PNG or SVG as it ends, and return it."""
        suffix = path.suffix if path.suffix == ".svg" else ".png"
        path.write_bytes(self._matrix_file(audit_id, f"{which}{suffix}", level))
        return path

    def download_report(self, audit_id: str, path: Path) -> Path:
        """Write the report's HTML page to `path` and return it."""
        address = f"/audits/{audit_id}/report.html"
        path.write_bytes(self._transport.send("GET", address, repeatable=True).content)
        return path

    def _matrix_file(self, audit_id: str, name: str, level: str) -> bytes:
        path = f"/audits/{audit_id}/{name}"
        return self._transport.send("GET", path, params={"level": level}, repeatable=True).content
