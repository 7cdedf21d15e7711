"""Comparisons of unlearning methods, and their kind of job."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KINDS_BEFORE = "kind IN ('seal', 'verify', 'pretrain', 'unlearn', 'audit')"
KINDS_AFTER = "kind IN ('seal', 'verify', 'pretrain', 'unlearn', 'audit', 'compare')"


def upgrade() -> None:
    """Apply the change."""
    _set_kinds(KINDS_AFTER)
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column(
            "settings", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column(
            "result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column(
            "objects", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_comparisons_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_comparisons_job_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_comparisons_model_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["parties.id"], name=op.f("fk_comparisons_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
        sa.UniqueConstraint("job_id", name=op.f("uq_comparisons_job_id")),
    )
    op.create_index(op.f("ix_comparisons_model_id"), "comparisons", ["model_id"], unique=False)
    op.create_index(op.f("ix_comparisons_owner_id"), "comparisons", ["owner_id"], unique=False)


def downgrade() -> None:
    """Undo the change; comparisons and their jobs are lost, whether they have ended or not."""
    op.execute(
        "DELETE FROM idempotency_keys USING comparisons "
        "WHERE idempotency_keys.resource_id = comparisons.id"
    )
    op.drop_index(op.f("ix_comparisons_owner_id"), table_name="comparisons")
    op.drop_index(op.f("ix_comparisons_model_id"), table_name="comparisons")
    op.drop_table("comparisons")
    op.execute("DELETE FROM jobs WHERE kind = 'compare'")
    _set_kinds(KINDS_BEFORE)


def _set_kinds(condition: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", condition)
