"""Which rows name an object is looked up, no longer read from all of them.

Indexes are built beside the work, which nothing waits for. What a run that broke off left of them goes first.
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from expunge.registry.migration import WITHIN

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None
expands = True

KEYS = (
    ("shards", "object_key"),
    ("datasets", "index_key"),
    ("checkpoints", "object_key"),
    ("checkpoints", "release_key"),
    ("jobs", "snapshot_key"),
    ("encodings", "views_key"),
    ("encodings", "outputs_key"),
)
DOCUMENTS = ("audits", "comparisons")
STRINGS = """jsonb_path_query_array(objects, 'strict $.** ? (@.type() == "string")'::jsonpath)"""
GIN = {"postgresql_using": "gin", "postgresql_with": {"fastupdate": "off"}}


def upgrade() -> None:
    """Apply the change."""
    config = op.get_context().config
    if config is not None and WITHIN in config.attributes:
        # All or nothing of somebody's transaction, whose rows nobody else sees yet.
        for name, table, columns, options in _indexes():
            op.create_index(name, table, columns, **options)
        return
    with op.get_context().autocommit_block():
        # It waits for transactions that are open, and nobody for it.
        op.execute("SET lock_timeout = 0")
        for name, table, columns, options in _indexes():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(name, table, columns, postgresql_concurrently=True, **options)
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    """Undo the change."""
    for name, table, *_ in _indexes():
        op.drop_index(name, table)


def _indexes() -> Iterator[tuple[str, str, list[Any], dict[str, Any]]]:
    for table, column in KEYS:
        yield op.f(f"ix_{table}_{column}"), table, [column], {}
    for table in DOCUMENTS:
        yield op.f(f"ix_{table}_objects"), table, [sa.text(STRINGS)], GIN
