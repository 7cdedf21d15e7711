"""The tables. Rules that the database itself can hold (uniqueness, references, states) stand here as constraints."""

from expunge.registry.tables.access import (
    Delegation,
    DelegationDataset,
    Encoding,
    Query,
    QueryKind,
)
from expunge.registry.tables.base import Table
from expunge.registry.tables.bookkeeping import DoomedObject, IdempotencyKey, LogRow, PendingObject
from expunge.registry.tables.certificates import Certificate, SigningKey
from expunge.registry.tables.datasets import Dataset, DirectUpload, Grant, Shard
from expunge.registry.tables.findings import Alert, AlertKind, Audit, AuditPurpose, Comparison
from expunge.registry.tables.fleet import Worker
from expunge.registry.tables.models import Checkpoint, CheckpointDataset, Model
from expunge.registry.tables.parties import ApiKey, Party, Role, Scope
from expunge.registry.tables.record import LogLeaf, LogNode, TreeHead, UnsealedRow
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
    "Alert",
    "AlertKind",
    "ApiKey",
    "Audit",
    "AuditPurpose",
    "Certificate",
    "Checkpoint",
    "CheckpointDataset",
    "Comparison",
    "Dataset",
    "Delegation",
    "DelegationDataset",
    "DirectUpload",
    "DoomedObject",
    "Encoding",
    "Grant",
    "IdempotencyKey",
    "Job",
    "JobKind",
    "LogLeaf",
    "LogNode",
    "LogRow",
    "Model",
    "Party",
    "PendingObject",
    "Query",
    "QueryKind",
    "Request",
    "RequestDataset",
    "Role",
    "Scope",
    "Shard",
    "SigningKey",
    "Table",
    "TreeHead",
    "UnsealedRow",
    "Worker",
]
