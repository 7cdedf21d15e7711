"""The calls about data sets."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from expunge.client import resources as r
from expunge.client.calls import Calls, create, get, pages, post, until_final
from expunge.client.problems import ProblemError, UnreachableError
from expunge.client.transport import Body, content_digest

DIRECT_FROM_BYTES = 16 * 2**20
"""Smaller shards are sooner there in one call than in three."""
CHECKED_BYTES_PER_SECOND = 20 * 2**20
"""A service that checks what was sent is waited for accordingly."""
NO_DIRECT_UPLOAD = ("urn:expunge:problem:direct-upload-unavailable", "about:blank")
"""Problems after which a shard goes through the service: of its store, of what is not the service's."""


class DatasetCalls(Calls):
    """Open data sets, upload shards, seal, grant."""

    def create_dataset(self, name: str, *, idempotency_key: str | None = None) -> r.Dataset:
        """Create an open, empty data set."""
        body = Body(json={"name": name})
        return r.Dataset.model_validate(create(self._transport, "/datasets", body, idempotency_key))

    def datasets(self) -> Iterator[r.Dataset]:
        """The caller's data sets, and those granted to the caller."""
        return pages(self._transport, "/datasets", r.Dataset.model_validate)

    def dataset(self, dataset_id: str) -> r.Dataset:
        """One data set."""
        return r.Dataset.model_validate(get(self._transport, f"/datasets/{dataset_id}"))

    def delete_dataset(self, dataset_id: str) -> r.Dataset:
        """Remove an own data set's samples for good; `deleting` while the store has not confirmed it.

        Raises:
            ProblemError: `dataset-in-use`, with `held_by`, while something needs it.
        """
        answer = self._transport.send("DELETE", f"/datasets/{dataset_id}", repeatable=True)
        return r.Dataset.model_validate(answer.json())

    def upload_shard(
        self, dataset_id: str, path: Path, name: str | None = None, *, direct: bool | None = None
    ) -> r.Shard:
        """Upload one tar shard from disk, streamed; the same name again replaces it.

        Args:
            direct: send it to the service's object store, which then has it checked; False: to the
                service. By default large ones go to the store, where the service offers that and
                the store can be reached from here.
        """
        named = name or path.name
        if direct or (direct is None and path.stat().st_size >= DIRECT_FROM_BYTES):
            try:
                return self._upload_directly(dataset_id, path, named)
            except UnreachableError:
                if direct:
                    raise
            except ProblemError as error:
                if direct or error.type not in NO_DIRECT_UPLOAD:
                    raise
        answer = self._transport.send(
            "PUT",
            f"/datasets/{dataset_id}/shards/{named}",
            Body(file=path),
            headers={"Content-Digest": content_digest(path), "Content-Type": "application/x-tar"},
            repeatable=True,
        )
        return r.Shard.model_validate(answer.json())

    def _upload_directly(self, dataset_id: str, path: Path, name: str) -> r.Shard:
        size = path.stat().st_size
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        uploads = f"/datasets/{dataset_id}/uploads"
        body = Body(json={"name": name, "bytes": size, "sha256": sha256})
        upload = r.Upload.model_validate(create(self._transport, uploads, body, None))
        self._transport.send_elsewhere(upload.url, Body(file=path), upload.headers)
        answer = self._transport.send(
            "POST",
            f"{uploads}/{upload.id}/complete",
            repeatable=True,
            wait=size / CHECKED_BYTES_PER_SECOND,
        )
        return r.Shard.model_validate(answer.json())

    def seal(self, dataset_id: str, *, wait: bool = True) -> r.Dataset:
        """Seal a data set: every sample is validated, the digest fixed.

        The state may be `invalid`, or `open` again if the check itself failed; `problem` says why.
        """
        path = f"/datasets/{dataset_id}"
        answer = post(self._transport, f"{path}/seal", {}, repeatable=True, wait=wait)
        first = r.Dataset.model_validate(answer)
        if not wait:
            return first
        return until_final(
            first, lambda: self.dataset(dataset_id), r.SETTLED_DATASET_STATES, self._max_wait
        )

    def samples(self, dataset_id: str) -> Iterator[r.SampleInfo]:
        """The index of a sealed data set, in order."""
        return pages(
            self._transport, f"/datasets/{dataset_id}/samples", r.SampleInfo.model_validate
        )

    def grant(self, dataset_id: str, party_id: str) -> None:
        """Let a model owner train on the data set (its samples stay hidden)."""
        path, body = f"/datasets/{dataset_id}/grants", {"party_id": party_id}
        post(self._transport, path, body, repeatable=True)

    def revoke_grant(self, dataset_id: str, party_id: str) -> None:
        """Take a grant back; what is trained already is changed by a request only."""
        self._transport.send("DELETE", f"/datasets/{dataset_id}/grants/{party_id}", repeatable=True)
