"""Is what database and store hold consistent? Looks at everything, mends nothing."""

from expunge.registry.fsck.checking import STATEMENT_TIMEOUT, Report, check
from expunge.registry.fsck.finding import ADVICE, Check, Finding
from expunge.registry.fsck.records import Records

__all__ = ["ADVICE", "STATEMENT_TIMEOUT", "Check", "Finding", "Records", "Report", "check"]
