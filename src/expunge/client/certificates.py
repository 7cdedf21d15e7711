"""The calls about certificates and run manifests: papers that are checked without the service."""

import json
import time
import uuid
from collections.abc import Callable

import httpx

from expunge.client.calls import Calls, get, pages
from expunge.client.log import LogRow
from expunge.client.problems import ProblemError
from expunge.client.transport import Body
from expunge.evidence.certificate import Predicate, Statement
from expunge.evidence.heads import Head
from expunge.evidence.manifest import Manifest
from expunge.evidence.signing import unverified

NOT_SEALED = "log-not-sealed"
SEALING_SECONDS = 30.0
"""How long a completion may wait to be sealed before the problem is shown."""
PAUSE_SECONDS = 0.5


class CertificateCalls(Calls):
    """What was done, signed."""

    def certificate(self, request_id: str, *, edition: int | None = None) -> bytes:
        """The certificate of a completed request, byte by byte as it is to be kept; the newest edition by default.

        Waits some seconds for the log to be sealed.
        """
        params = {} if edition is None else {"edition": edition}
        path = f"/requests/{request_id}/certificate"
        return _sealed(lambda: self._transport.send("GET", path, params=params, repeatable=True))

    def renew_certificate(self, request_id: str, *, idempotency_key: str | None = None) -> bytes:
        """A further edition if anything that it says has changed, else the newest."""
        path = f"/requests/{request_id}/certificate"
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return _sealed(
            lambda: self._transport.send("POST", path, Body(), headers=headers, repeatable=True)
        )

    def certified_rows(self, request_id: str, certificate: bytes) -> list[LogRow]:
        """What the log says of the request, each row proven under the tree head of its certificate."""
        size = Head.parse(unverified(told(certificate).log.head)).size
        rows = pages(
            self._transport, "/log", LogRow.model_validate, {"subject": request_id, "size": size}
        )
        return [row for row in rows if row.path is not None]

    def manifest(self, job_id: str) -> Manifest:
        """All that decided what a job's run gave, for whoever is to repeat it."""
        return Manifest.model_validate(get(self._transport, f"/jobs/{job_id}/manifest"))


def told(certificate: bytes) -> Predicate:
    """What a certificate says, which nobody has checked here."""
    return Statement.model_validate_json(unverified(json.loads(certificate))).predicate


def _sealed(call: Callable[[], httpx.Response]) -> bytes:
    deadline = time.monotonic() + SEALING_SECONDS
    while True:
        try:
            return call().content
        except ProblemError as problem:
            if not problem.type.endswith(NOT_SEALED) or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)
