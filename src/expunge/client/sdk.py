"""The Python SDK: one method per call of the service, typed answers, problems as exceptions.

Holds no state but the connection; never retries a call that could act twice.
"""

from types import TracebackType
from typing import Self

from expunge.client import resources as r
from expunge.client.alerts import AlertCalls
from expunge.client.audits import AuditCalls
from expunge.client.calls import get
from expunge.client.certificates import CertificateCalls
from expunge.client.comparisons import Comparisons
from expunge.client.datasets import DatasetCalls
from expunge.client.log import LogCalls
from expunge.client.models import ModelCalls
from expunge.client.parties import PartyCalls
from expunge.client.problems import ProblemError
from expunge.client.removals import RemovalCalls
from expunge.client.transport import Transport

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_WAIT_SECONDS = 3600.0


class Client(
    PartyCalls,
    DatasetCalls,
    ModelCalls,
    RemovalCalls,
    AuditCalls,
    CertificateCalls,
    AlertCalls,
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
