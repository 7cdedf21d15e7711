"""The calls about models, their checkpoints and their history."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.client import resources as r
from expunge.client.calls import Calls, create, get, pages, post, until_final
from expunge.client.downloading import download
from expunge.client.sending import IN_PARTS_FROM_BYTES, send_in_parts
from expunge.client.transport import Body, content_digest


class ModelCalls(Calls):
    """Add models, train them, choose their policy and their head."""

    def create_model(
        self,
        name: str,
        encoder: Mapping[str, Any],
        *,
        control_dataset_id: str | None = None,
        policy: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> r.Model:
        """Create a model; `encoder` is an encoder specification as the API reference describes."""
        body: dict[str, Any] = {"name": name, "encoder": dict(encoder)}
        if control_dataset_id is not None:
            body["control_dataset_id"] = control_dataset_id
        if policy is not None:
            body["policy"] = dict(policy)
        answer = create(self._transport, "/models", Body(json=body), idempotency_key)
        return r.Model.model_validate(answer)

    def models(self) -> Iterator[r.Model]:
        """The models that the caller may see."""
        return pages(self._transport, "/models", r.Model.model_validate)

    def model(self, model_id: str) -> r.Model:
        """One model."""
        return r.Model.model_validate(get(self._transport, f"/models/{model_id}"))

    def set_policy(self, model_id: str, **policy: Any) -> r.Model:
        """Change parts of the policy, e.g. `approval="manual"`; what is left out stays."""
        path, body = f"/models/{model_id}/policy", Body(json=policy)
        answer = self._transport.send("PATCH", path, body, repeatable=True)
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
        idempotency_key: str | None = None,
    ) -> r.Job:
        """Train fresh weights for the model, as a job."""
        body = {"dataset_ids": list(dataset_ids), "params": dict(params or {}), "seed": seed}
        path = f"/models/{model_id}/pretrain"
        return r.Job.model_validate(create(self._transport, path, Body(json=body), idempotency_key))

    def lineage(self, model_id: str) -> Iterator[r.Ancestry]:
        """The model's checkpoints, oldest first: where each came from, and whether one can go back."""
        return pages(self._transport, f"/models/{model_id}/lineage", r.Ancestry.model_validate)

    def upload_checkpoint(
        self,
        model_id: str,
        path: Path,
        dataset_ids: Sequence[str],
        *,
        wait: bool = True,
        idempotency_key: str | None = None,
        direct: bool | None = None,
    ) -> r.Checkpoint:
        """Upload a safetensors checkpoint that was trained on these data sets.

        Large files go in parts: after a break the same call sends only what lacks.

        Args:
            direct: send parts to the service's object store; False: to the service. By default to the
                store, where the service offers that and the store can be reached from here.
        """
        if path.stat().st_size >= IN_PARTS_FROM_BYTES:
            first = send_in_parts(
                self._transport,
                model_id,
                path,
                dataset_ids,
                wait=wait,
                idempotency_key=idempotency_key,
                direct=direct,
            )
        else:
            answer = create(
                self._transport,
                f"/models/{model_id}/checkpoints",
                Body(file=path),
                idempotency_key,
                params={"dataset_ids": list(dataset_ids)},
                headers={"Content-Digest": content_digest(path)},
                wait=wait,
            )
            first = r.Checkpoint.model_validate(answer)
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
        """Write the releasable weights to `path` once they are complete; returns `sha256:<hex>`.

        A download that breaks off goes on where it was, also in a later call.

        Raises:
            DoubtError: other bytes came than the checkpoint's `release_digest` says.
        """
        sha256 = self.checkpoint(checkpoint_id).release_digest.removeprefix("sha256:")
        download(self._transport, f"/checkpoints/{checkpoint_id}/weights", path, sha256)
        return f"sha256:{sha256}"

    def promote(self, checkpoint_id: str) -> r.Model:
        """Make a checkpoint the model's head: a result that waits, or an earlier head."""
        path = f"/checkpoints/{checkpoint_id}/promote"
        return r.Model.model_validate(post(self._transport, path, {}, repeatable=True))
