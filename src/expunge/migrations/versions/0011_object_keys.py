"""Which rows name an object is looked up, no longer read from all of them. Writing waits while indexes are built."""

import sqlalchemy as sa
from alembic import op

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


def upgrade() -> None:
    """Apply the change."""
    for table, column in KEYS:
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column], unique=False)
    for table in DOCUMENTS:
        op.create_index(
            op.f(f"ix_{table}_objects"),
            table,
            [sa.text(STRINGS)],
            unique=False,
            postgresql_using="gin",
            postgresql_with={"fastupdate": "off"},
        )


def downgrade() -> None:
    """Undo the change."""
    for table in DOCUMENTS:
        op.drop_index(op.f(f"ix_{table}_objects"), table_name=table)
    for table, column in KEYS:
        op.drop_index(op.f(f"ix_{table}_{column}"), table_name=table)
