"""The audit of what happened to own samples between two encoders, from their outputs alone."""

from expunge.evidence.audit.auditing import audit
from expunge.evidence.audit.outputs import Level, Outputs, Reference, Side, pair_samples
from expunge.evidence.audit.placing import bounds_of_all, place
from expunge.evidence.audit.report import AuditReport, NullQuantiles
from expunge.evidence.audit.verdict import MIN_REFERENCE

__all__ = [
    "MIN_REFERENCE",
    "AuditReport",
    "Level",
    "NullQuantiles",
    "Outputs",
    "Reference",
    "Side",
    "audit",
    "bounds_of_all",
    "pair_samples",
    "place",
]
