"""Is what database and store hold consistent? Looks at everything, mends nothing."""

from expunge.registry.fsck.checking import Report, check
from expunge.registry.fsck.finding import ADVICE, Check, Finding
from expunge.registry.fsck.records import Records, read

__all__ = ["ADVICE", "Check", "Finding", "Records", "Report", "check", "read"]
