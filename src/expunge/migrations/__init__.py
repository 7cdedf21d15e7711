"""Alembic scripts: one file per change of the schema, applied in order by `expunge migrate`."""
