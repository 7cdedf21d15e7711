"""The calls about removals: what one would take, requests, and the jobs that carry them out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from expunge.client import resources as r
from expunge.client.calls import Calls, create, events, get, pages, post
from expunge.client.transport import Body


class RemovalCalls(Calls):
    """Estimate, ask, decide, follow, steer."""

    def estimate(
        self,
        model_id: str,
        dataset_ids: Sequence[str],
        methods: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[r.Estimate]:
        """What forgetting data sets would take; `methods` as `{"method": …, "params": {…}}`, else all."""
        body: dict[str, Any] = {"model_id": model_id, "dataset_ids": list(dataset_ids)}
        if methods is not None:
            body["methods"] = [dict(each) for each in methods]
        answer = post(self._transport, "/estimates", body, repeatable=True)
        return [r.Estimate.model_validate(each) for each in answer["items"]]

    def create_request(
        self,
        model_id: str,
        dataset_ids: Sequence[str],
        method: str = "alignment_calibration",
        params: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> r.RemovalRequest:
        """Ask a model to forget data sets. Retries carry one Idempotency-Key: it is asked once."""
        body = {"model_id": model_id, "dataset_ids": list(dataset_ids), "method": method}
        content = Body(json=body | {"params": dict(params or {})})
        answer = create(self._transport, "/requests", content, idempotency_key)
        return r.RemovalRequest.model_validate(answer)

    def requests(self) -> Iterator[r.RemovalRequest]:
        """The requests that the caller made or whose model the caller owns."""
        return pages(self._transport, "/requests", r.RemovalRequest.model_validate)

    def request(self, request_id: str) -> r.RemovalRequest:
        """One request."""
        return r.RemovalRequest.model_validate(get(self._transport, f"/requests/{request_id}"))

    def approve_request(self, request_id: str) -> r.RemovalRequest:
        """Take up a request that waits for the caller, the model's owner."""
        path = f"/requests/{request_id}/approve"
        return r.RemovalRequest.model_validate(post(self._transport, path, {}))

    def reject_request(self, request_id: str, reason: str) -> r.RemovalRequest:
        """Refuse a request that waits for the caller, the model's owner; its owner reads the reason."""
        path, body = f"/requests/{request_id}/reject", {"reason": reason}
        return r.RemovalRequest.model_validate(post(self._transport, path, body))

    def withdraw_request(self, request_id: str) -> r.RemovalRequest:
        """Take back an own request whose job has not started."""
        path = f"/requests/{request_id}/cancel"
        return r.RemovalRequest.model_validate(post(self._transport, path, {}, repeatable=True))

    def request_log(self, request_id: str) -> Iterator[r.LogEntry]:
        """What happened to a request, in order."""
        return pages(self._transport, f"/requests/{request_id}/log", r.LogEntry.model_validate)

    def residue(self, request_id: str) -> list[r.Residue]:
        """What still exists of a request's data, where, why and until when."""
        answer = get(self._transport, f"/requests/{request_id}/residue")
        return [r.Residue.model_validate(each) for each in answer["items"]]

    def watch_request(self, request_id: str) -> Iterator[r.Event]:
        """The events of a request until it is final, through lost connections."""
        return events(self._transport, f"/requests/{request_id}/events")

    def jobs(self) -> Iterator[r.Job]:
        """The jobs of the caller's models."""
        return pages(self._transport, "/jobs", r.Job.model_validate)

    def job(self, job_id: str) -> r.Job:
        """One job."""
        return r.Job.model_validate(get(self._transport, f"/jobs/{job_id}"))

    def cancel_job(self, job_id: str, reason: str | None = None) -> r.Job:
        """End a waiting or running job and all its requests, whose owners read the reason."""
        path, body = f"/jobs/{job_id}/cancel", {"reason": reason}
        return r.Job.model_validate(post(self._transport, path, body, repeatable=True))

    def set_priority(self, job_id: str, priority: int) -> r.Job:
        """Let a waiting job go before (up to 9) or after (down to -9) others of the caller."""
        body = Body(json={"priority": priority})
        answer = self._transport.send("PATCH", f"/jobs/{job_id}", body, repeatable=True)
        return r.Job.model_validate(answer.json())

    def job_log(self, job_id: str) -> Iterator[r.LogEntry]:
        """What happened to a job, in order: every attempt, and how it ended."""
        return pages(self._transport, f"/jobs/{job_id}/log", r.LogEntry.model_validate)

    def watch_job(self, job_id: str) -> Iterator[r.Event]:
        """The events of a job until it is final, through lost connections."""
        return events(self._transport, f"/jobs/{job_id}/events")
