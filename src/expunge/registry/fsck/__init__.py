"""Is what database and store hold consistent? Looks at everything, mends nothing."""

from expunge.registry.fsck.records import Records, read

__all__ = ["Records", "read"]
