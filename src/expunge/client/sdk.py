"""The Python SDK: one method per call of the service, typed answers, problems as exceptions.

Holds no state but the connection; never retries a call that could act twice.
"""

import hashlib
import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from expunge.client import resources as r
from expunge.client.calls import events, extra_seconds, get, pages, post, prefer, until_final
from expunge.client.comparisons import Comparisons
from expunge.client.problems import ProblemError
from expunge.client.reports import Audit
from expunge.client.transport import Body, Transport, content_digest

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_WAIT_SECONDS = 3600.0


class Client:
    """The service as seen with one key.

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
        self._transport = Transport(base_url, key, timeout)
        self._max_wait = max_wait
        self.comparisons = Comparisons(self._transport, max_wait)

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

    # The service itself.

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

    # Parties and keys (operator).

    def create_party(self, name: str, role: r.Role) -> r.Party:
        """Create a party."""
        return r.Party.model_validate(
            post(self._transport, "/parties", {"name": name, "role": role})
        )

    def parties(self) -> Iterator[r.Party]:
        """All parties."""
        return pages(self._transport, "/parties", r.Party.model_validate)

    def create_key(self, party_id: str, expires_in_days: int | None = None) -> r.Key:
        """Create a key for a party; its secret is in this answer only."""
        body = {} if expires_in_days is None else {"expires_in_days": expires_in_days}
        return r.Key.model_validate(post(self._transport, f"/parties/{party_id}/keys", body))

    def revoke_key(self, key_id: str) -> None:
        """Make a key useless from now on."""
        self._transport.send("DELETE", f"/keys/{key_id}", repeatable=True)

    # Data sets.

    def create_dataset(self, name: str) -> r.Dataset:
        """Create an open, empty data set."""
        return r.Dataset.model_validate(post(self._transport, "/datasets", {"name": name}))

    def datasets(self) -> Iterator[r.Dataset]:
        """The caller's data sets, and those granted to the caller."""
        return pages(self._transport, "/datasets", r.Dataset.model_validate)

    def dataset(self, dataset_id: str) -> r.Dataset:
        """One data set."""
        return r.Dataset.model_validate(get(self._transport, f"/datasets/{dataset_id}"))

    def upload_shard(self, dataset_id: str, path: Path, name: str | None = None) -> r.Shard:
        """Upload one tar shard from disk, streamed; the same name again replaces it."""
        answer = self._transport.send(
            "PUT",
            f"/datasets/{dataset_id}/shards/{name or path.name}",
            Body(file=path),
            headers={"Content-Digest": content_digest(path), "Content-Type": "application/x-tar"},
            repeatable=True,
        )
        return r.Shard.model_validate(answer.json())

    def seal(self, dataset_id: str, *, wait: bool = True) -> r.Dataset:
        """Seal a data set: every sample is validated, the digest fixed; state may be `invalid`."""
        path = f"/datasets/{dataset_id}"
        first = r.Dataset.model_validate(post(self._transport, f"{path}/seal", {}, wait=wait))
        if not wait:
            return first
        return until_final(
            first, lambda: self.dataset(dataset_id), r.FINAL_DATASET_STATES, self._max_wait
        )

    def samples(self, dataset_id: str) -> Iterator[r.SampleInfo]:
        """The index of a sealed data set, in order."""
        return pages(
            self._transport, f"/datasets/{dataset_id}/samples", r.SampleInfo.model_validate
        )

    def grant(self, dataset_id: str, party_id: str) -> None:
        """Let a model owner train on the data set (its samples stay hidden)."""
        post(self._transport, f"/datasets/{dataset_id}/grants", {"party_id": party_id})

    def revoke_grant(self, dataset_id: str, party_id: str) -> None:
        """Take a grant back; what is trained already is changed by a request only."""
        self._transport.send("DELETE", f"/datasets/{dataset_id}/grants/{party_id}", repeatable=True)

    # Models and checkpoints.

    def create_model(
        self,
        name: str,
        encoder: Mapping[str, Any],
        *,
        control_dataset_id: str | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> r.Model:
        """Create a model; `encoder` is an encoder specification as the API reference describes."""
        body: dict[str, Any] = {"name": name, "encoder": dict(encoder)}
        if control_dataset_id is not None:
            body["control_dataset_id"] = control_dataset_id
        if policy is not None:
            body["policy"] = dict(policy)
        return r.Model.model_validate(post(self._transport, "/models", body))

    def models(self) -> Iterator[r.Model]:
        """The models that the caller may see."""
        return pages(self._transport, "/models", r.Model.model_validate)

    def model(self, model_id: str) -> r.Model:
        """One model."""
        return r.Model.model_validate(get(self._transport, f"/models/{model_id}"))

    def set_policy(self, model_id: str, **policy: Any) -> r.Model:
        """Change `batch_window_seconds` or `promotion`."""
        answer = self._transport.send("PATCH", f"/models/{model_id}/policy", Body(json=policy))
        return r.Model.model_validate(answer.json())

    def set_control(self, model_id: str, dataset_id: str) -> r.Model:
        """Name the data set of never-trained images that audits compare with."""
        body = Body(json={"dataset_id": dataset_id})
        answer = self._transport.send("PUT", f"/models/{model_id}/control", body, repeatable=True)
        return r.Model.model_validate(answer.json())

    def pretrain(
        self,
        model_id: str,
        dataset_ids: Sequence[str],
        params: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
    ) -> r.Job:
        """Train the model's first checkpoint, as a job."""
        body = {"dataset_ids": list(dataset_ids), "params": dict(params or {}), "seed": seed}
        return r.Job.model_validate(post(self._transport, f"/models/{model_id}/pretrain", body))

    def upload_checkpoint(
        self, model_id: str, path: Path, dataset_ids: Sequence[str], *, wait: bool = True
    ) -> r.Checkpoint:
        """Upload a safetensors checkpoint that was trained on these data sets."""
        answer = self._transport.send(
            "POST",
            f"/models/{model_id}/checkpoints",
            Body(file=path),
            params={"dataset_ids": list(dataset_ids)},
            headers={"Content-Digest": content_digest(path)} | prefer(wait),
            wait=extra_seconds(wait),
        )
        first = r.Checkpoint.model_validate(answer.json())
        if not wait:
            return first
        return until_final(
            first, lambda: self.checkpoint(first.id), r.FINAL_CHECKPOINT_STATES, self._max_wait
        )

    def checkpoints(self, model_id: str) -> Iterator[r.Checkpoint]:
        """The checkpoints of a model."""
        return pages(
            self._transport, f"/models/{model_id}/checkpoints", r.Checkpoint.model_validate
        )

    def checkpoint(self, checkpoint_id: str) -> r.Checkpoint:
        """One checkpoint."""
        return r.Checkpoint.model_validate(get(self._transport, f"/checkpoints/{checkpoint_id}"))

    def download_weights(self, checkpoint_id: str, path: Path) -> str:
        """Write the releasable weights to `path` once they are complete; returns `sha256:<hex>`."""
        part = path.with_name(path.name + ".part")
        digest = hashlib.sha256()
        try:
            with (
                self._transport.download(f"/checkpoints/{checkpoint_id}/weights") as pieces,
                part.open("wb") as file,
            ):
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return f"sha256:{digest.hexdigest()}"

    def promote(self, checkpoint_id: str) -> r.Model:
        """Make a checkpoint the model's head (where the policy says `manual`)."""
        return r.Model.model_validate(
            post(self._transport, f"/checkpoints/{checkpoint_id}/promote", {})
        )

    # Requests and jobs.

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
        answer = self._transport.send(
            "POST",
            "/requests",
            Body(json=body | {"params": dict(params or {})}),
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
            repeatable=True,
        )
        return r.RemovalRequest.model_validate(answer.json())

    def requests(self) -> Iterator[r.RemovalRequest]:
        """The requests that the caller made or whose model the caller owns."""
        return pages(self._transport, "/requests", r.RemovalRequest.model_validate)

    def request(self, request_id: str) -> r.RemovalRequest:
        """One request."""
        return r.RemovalRequest.model_validate(get(self._transport, f"/requests/{request_id}"))

    def watch_request(self, request_id: str) -> Iterator[r.Event]:
        """The events of a request until it is final, through lost connections."""
        return events(self._transport, f"/requests/{request_id}/events")

    def jobs(self) -> Iterator[r.Job]:
        """The jobs of the caller's models."""
        return pages(self._transport, "/jobs", r.Job.model_validate)

    def job(self, job_id: str) -> r.Job:
        """One job."""
        return r.Job.model_validate(get(self._transport, f"/jobs/{job_id}"))

    def watch_job(self, job_id: str) -> Iterator[r.Event]:
        """The events of a job until it is final, through lost connections."""
        return events(self._transport, f"/jobs/{job_id}/events")

    # Audits.

    def audit(
        self,
        request_id: str,
        *,
        dataset_ids: Sequence[str] | None = None,
        matrix_size: int | None = None,
        views: int | None = None,
        seed: int | None = None,
        wait: bool = True,
    ) -> Audit:
        """Audit a completed request over the caller's own samples; state may be `failed`."""
        body = {
            "request_id": request_id,
            "dataset_ids": None if dataset_ids is None else list(dataset_ids),
            "matrix_size": matrix_size,
            "views": views,
            "seed": seed,
        }
        given = {key: value for key, value in body.items() if value is not None}
        first = Audit.model_validate(post(self._transport, "/audit", given, wait=wait))
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

    def download_picture(self, audit_id: str, which: r.Which, level: r.Level, path: Path) -> Path:
        """Write a matrix's PNG to `path` and return it."""
        path.write_bytes(self._matrix_file(audit_id, f"{which}.png", level))
        return path

    def _matrix_file(self, audit_id: str, name: str, level: str) -> bytes:
        path = f"/audits/{audit_id}/{name}"
        return self._transport.send("GET", path, params={"level": level}, repeatable=True).content
