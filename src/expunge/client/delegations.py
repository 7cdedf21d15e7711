"""The calls about delegations: auditors who act for an owner."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from expunge.client.calls import Calls, create, pages
from expunge.client.resources import Resource
from expunge.client.transport import Body


class Delegation(Resource):
    """Leave for an auditor to see and audit data sets; `withdrawn_at` if it was taken back."""

    id: str
    owner_id: str
    auditor_id: str
    dataset_ids: list[str]
    expires_at: datetime
    withdrawn_at: datetime | None = None
    created_at: datetime


class DelegationCalls(Calls):
    """Who may audit for whom."""

    def delegate(
        self,
        auditor_id: str,
        dataset_ids: Sequence[str],
        expires_at: datetime,
        *,
        idempotency_key: str | None = None,
    ) -> Delegation:
        """Let an auditor see and audit own sealed data sets until a time (with its zone) within a year."""
        body = {
            "auditor_id": auditor_id,
            "dataset_ids": list(dataset_ids),
            "expires_at": expires_at.isoformat(),
        }
        answer = create(self._transport, "/delegations", Body(json=body), idempotency_key)
        return Delegation.model_validate(answer)

    def delegations(self) -> Iterator[Delegation]:
        """Those that the caller gave or was given, ended ones too."""
        return pages(self._transport, "/delegations", Delegation.model_validate)

    def withdraw_delegation(self, delegation_id: str) -> None:
        """End a delegation now."""
        self._transport.send("DELETE", f"/delegations/{delegation_id}", repeatable=True)
