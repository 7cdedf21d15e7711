"""The tables. Rules that the database itself can hold (uniqueness, references, states) stand here as constraints."""

from expunge.registry.tables.base import Table
from expunge.registry.tables.bookkeeping import IdempotencyKey, LogRow, PendingObject
from expunge.registry.tables.datasets import Dataset, Grant, Shard
from expunge.registry.tables.findings import Audit, Comparison
from expunge.registry.tables.models import Checkpoint, CheckpointDataset, Model
from expunge.registry.tables.parties import ApiKey, Party, Role
from expunge.registry.tables.work import (
    MODEL_OWNER_KINDS,
    TRAINING_KINDS,
    Job,
    JobKind,
    Request,
    RequestDataset,
)

__all__ = [
    "MODEL_OWNER_KINDS",
    "TRAINING_KINDS",
    "ApiKey",
    "Audit",
    "Checkpoint",
    "CheckpointDataset",
    "Comparison",
    "Dataset",
    "Grant",
    "IdempotencyKey",
    "Job",
    "JobKind",
    "LogRow",
    "Model",
    "Party",
    "PendingObject",
    "Request",
    "RequestDataset",
    "Role",
    "Shard",
    "Table",
]
