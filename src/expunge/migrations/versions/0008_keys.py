"""What a key may do, when it was used last and which key it replaces; rows of the log that no seal fits."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
SCOPES = "scopes <@ ARRAY['read', 'write', 'audit', 'keys'] AND cardinality(scopes) > 0"


def upgrade() -> None:
    """Apply the change; every key that is there may do all that its party may."""
    op.add_column("api_keys", sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", TIME, nullable=True))
    op.add_column("api_keys", sa.Column("replaces_id", sa.String(), nullable=True))
    op.create_check_constraint(op.f("ck_api_keys_scopes"), "api_keys", SCOPES)
    op.create_foreign_key(
        op.f("fk_api_keys_replaces_id"), "api_keys", "api_keys", ["replaces_id"], ["id"]
    )
    op.add_column("log_unsealed", sa.Column("refused_at", TIME, nullable=True))


def downgrade() -> None:
    """Undo the change; keys that may not do everything end, since nothing would hold them any more."""
    op.drop_column("log_unsealed", "refused_at")
    op.execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE scopes IS NOT NULL"
    )
    op.drop_constraint(op.f("fk_api_keys_replaces_id"), "api_keys", type_="foreignkey")
    op.drop_constraint(op.f("ck_api_keys_scopes"), "api_keys", type_="check")
    for column in ("replaces_id", "last_used_at", "scopes"):
        op.drop_column("api_keys", column)
