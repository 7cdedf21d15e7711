"""The Python SDK: one method per call of the service, typed answers, problems as exceptions.

Holds no state but the connection; never retries a call that could act twice.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from expunge.client import resources as r
from expunge.client.alerts import AlertCalls
from expunge.client.audits import AuditCalls
from expunge.client.calls import get
from expunge.client.certificates import CertificateCalls
from expunge.client.comparisons import Comparisons
from expunge.client.datasets import DatasetCalls
from expunge.client.delegations import DelegationCalls
from expunge.client.encodings import EncodingCalls
from expunge.client.fleet import FleetCalls
from expunge.client.log import LogCalls
from expunge.client.models import ModelCalls
from expunge.client.parties import PartyCalls
from expunge.client.problems import ProblemError
from expunge.client.removals import RemovalCalls
from expunge.client.transport import Transport

if TYPE_CHECKING:
    from expunge.client.local_audit import LocalAudit
    from expunge.client.replaying import Replay
    from expunge.evidence.signing import PublicKey

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_WAIT_SECONDS = 3600.0
DEFAULT_VIEWS, DEFAULT_MATRIX_SIZE = 10, 64


class Client(
    PartyCalls,
    DatasetCalls,
    ModelCalls,
    RemovalCalls,
    AuditCalls,
    EncodingCalls,
    DelegationCalls,
    CertificateCalls,
    AlertCalls,
    FleetCalls,
    LogCalls,
):
    """The service as seen with one key.

    Whatever creates something takes an `idempotency_key`, or draws one: a call whose answer is lost
    is repeated, and makes one thing.

    Example:
        >>> with Client("http://127.0.0.1:8000", key) as owner:  # doctest: +SKIP
        ...     request = owner.create_request(model_id, [dataset_id])
        ...     for event in owner.watch_request(request.id):
        ...         print(event)
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_wait: float = MAX_WAIT_SECONDS,
    ) -> None:
        """`timeout` and `max_wait` in seconds: for one answer, and for work that is waited for."""
        super().__init__(Transport(base_url, key, timeout), max_wait)
        self.comparisons = Comparisons(self._transport, max_wait)

    @property
    def base_url(self) -> str:
        """The address of the service."""
        return self._transport.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def audit_at_home(
        self,
        request_id: str,
        *,
        dataset_ids: Sequence[str] | None = None,
        sample_keys: Sequence[str] | None = None,
        draw: Mapping[str, int] | None = None,
        views: int = DEFAULT_VIEWS,
        seed: int | None = None,
        matrix_size: int = DEFAULT_MATRIX_SIZE,
        keys: Sequence["PublicKey"] = (),
    ) -> "LocalAudit":
        """Audit a completed request here, from both encoders' outputs; with `keys`, only if one of them signed.

        Without a `seed`, the views are those of the service's own audits (`evidence.protocol`).
        Costs two queries of the request's budget: the encoding, and an audit of the same samples
        for its quantiles.

        Raises:
            DoubtError: the encoding failed, or what came does not fit its receipt, the request's
                weights or the keys.
        """
        from expunge.client import local_audit  # noqa: PLC0415 - brings scipy along

        return local_audit.audit_at_home(
            self,
            request_id,
            dataset_ids=dataset_ids,
            sample_keys=sample_keys,
            draw=draw,
            views=views,
            seed=seed,
            matrix_size=matrix_size,
            keys=keys,
        )

    def replay_audit(
        self, recorded: Mapping[str, Any], *, keys: Sequence["PublicKey"] = ()
    ) -> "Replay":
        """Repeat a recorded audit here, from outputs encoded anew, and say what differs.

        `recorded` is the audit as the service told it: `GET /audits/{id}`, `expunge audit --json`. Compares
        weights, samples and what own samples alone decide. Costs one query of the request's budget.

        Raises:
            DoubtError: it is no finished audit, or see `audit_at_home`.
        """
        from expunge.client import replaying  # noqa: PLC0415 - brings scipy along

        return replaying.replay(self, recorded, keys=keys)

    def methods(self) -> list[r.Method]:
        """The unlearning methods with the schema of their parameters. Needs no key."""
        return [r.Method.model_validate(item) for item in get(self._transport, "/methods")["items"]]

    def me(self) -> r.Me:
        """Whose key this is."""
        return r.Me.model_validate(get(self._transport, "/me"))

    def ready(self) -> bool:
        """Whether the service says that it can work. Needs no key."""
        try:
            return bool(get(self._transport, "/readyz")["status"] == "ready")
        except ProblemError:
            return False
