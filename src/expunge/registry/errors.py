"""What can be wrong with a call, raised where the rule lives and turned into a problem response once, by the api."""

from collections.abc import Sequence
from typing import Any


class DomainError(Exception):
    """Base: `slug` is the stable problem type, `status` its HTTP status, `extensions` extra members."""

    slug = "internal"
    title = "Internal error"
    status = 500

    def __init__(self, detail: str, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extensions = extensions


class NotFound(DomainError):
    """There is no such resource, or it belongs to another party."""

    slug, title, status = "not-found", "Not found", 404

    @classmethod
    def of(cls, kind: str, ids: str | Sequence[str]) -> "NotFound":
        """The error for one or several identifiers of a kind of resource."""
        names = ids if isinstance(ids, str) else ", ".join(ids)
        return cls(f"There is no {kind} {names} that you can see.", kind=kind)


class Unauthenticated(DomainError):
    """The bearer key is missing, unknown, expired or revoked."""

    slug, title, status = "unauthenticated", "A valid key is needed", 401


class Forbidden(DomainError):
    """The key is valid, but its party's role may not make this call."""

    slug, title, status = "forbidden", "Not allowed for this role", 403


class Conflict(DomainError):
    """The resource is in a state in which the call makes no sense."""

    slug, title, status = "conflict", "Conflict with the current state", 409


class Invalid(DomainError):
    """The call is understood, but a value breaks a rule."""

    slug, title, status = "invalid", "Invalid input", 422


class UnknownMethod(Invalid):
    """The unlearning method does not exist."""

    slug, title = "unknown-method", "Unknown method"


class InvalidParameters(Invalid):
    """A method's parameter is unknown, of the wrong type or out of bounds."""

    slug, title = "invalid-parameters", "Invalid method parameters"


class InvalidShard(Invalid):
    """A shard breaks a rule of the format."""

    slug, title = "invalid-shard", "Invalid shard"


class InvalidCheckpoint(Invalid):
    """A checkpoint file cannot be read or does not carry the header it needs."""

    slug, title = "invalid-checkpoint", "Invalid checkpoint"


class DigestMismatch(Invalid):
    """The received bytes do not have the announced digest."""

    slug, title = "digest-mismatch", "Content does not match its digest"


class NotInTrainingData(Invalid):
    """A data set to be forgotten is not part of what the model was trained on."""

    slug, title = "not-in-training-data", "Data set not in the model's training data"


class AlreadyForgotten(Conflict):
    """A data set was forgotten before, or another request is forgetting it."""

    slug, title = "already-forgotten", "Already forgotten or being forgotten"


class NotSealed(Conflict):
    """A data set must be sealed first."""

    slug, title = "dataset-not-sealed", "Data set is not sealed"


class CheckpointDestroyed(Conflict):
    """A checkpoint is needed whose weights were destroyed, since they held what was forgotten."""

    slug, title = "checkpoint-destroyed", "Checkpoint destroyed"


class DatasetDeleted(Conflict):
    """A data set is needed whose samples its owner deleted."""

    slug, title = "dataset-deleted", "Data set deleted"


class DatasetInUse(Conflict):
    """A data set cannot be deleted yet; `held_by` says what needs it."""

    slug, title = "dataset-in-use", "Data set is in use"


class IdempotencyConflict(Invalid):
    """The Idempotency-Key was used before with another body."""

    slug, title = "idempotency-key-reused", "Idempotency-Key reused with another body"
