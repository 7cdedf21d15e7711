"""Later heads: audits that the service makes by itself, and alerts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
TIME = sa.DateTime(timezone=True)
KINDS = "'seal', 'verify', 'pretrain', 'unlearn', 'audit', 'encode', 'compare'"
AUDIT_COLUMNS = (
    sa.Column("purpose", sa.String(), nullable=False, server_default="asked"),
    sa.Column("settings", JSONB, nullable=True),
    sa.Column("reason", sa.String(), nullable=True),
    sa.Column("settled_at", TIME, nullable=True),
)
ALERT_REFERENCES = {"request_id": "requests", "model_id": "models", "checkpoint_id": "checkpoints"}


def upgrade() -> None:
    """Apply the change; every audit that is there was asked for."""
    _set_kinds(f"kind IN ({KINDS}, 'review')")
    for column in AUDIT_COLUMNS:
        op.add_column("audits", column)
    op.alter_column("audits", "purpose", server_default=None)
    op.create_check_constraint(
        op.f("ck_audits_purpose"), "audits", "purpose IN ('asked', 'protocol', 'later_head')"
    )
    op.drop_constraint(op.f("uq_audits_job_id"), "audits", type_="unique")
    op.create_unique_constraint(
        op.f("uq_audits_job_id_request_id"), "audits", ["job_id", "request_id"]
    )
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ALERT_REFERENCES),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("detail", JSONB, nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("acknowledged_at", TIME, nullable=True),
        sa.Column("acknowledged_by", sa.String(), nullable=True),
        sa.CheckConstraint("kind IN ('relearned')", name=op.f("ck_alerts_kind")),
        *(
            sa.ForeignKeyConstraint([column], [f"{target}.id"], name=op.f(f"fk_alerts_{column}"))
            for column, target in (ALERT_REFERENCES | {"acknowledged_by": "parties"}).items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        sa.UniqueConstraint(
            "request_id", "checkpoint_id", name=op.f("uq_alerts_request_id_checkpoint_id")
        ),
    )
    op.create_index(op.f("ix_alerts_model_id"), "alerts", ["model_id"], unique=False)


def downgrade() -> None:
    """Undo the change; alerts and the service's own audits are lost."""
    op.drop_table("alerts")
    op.execute("DELETE FROM audits WHERE purpose != 'asked'")
    op.execute("DELETE FROM jobs WHERE kind = 'review'")
    op.drop_constraint(op.f("uq_audits_job_id_request_id"), "audits", type_="unique")
    op.create_unique_constraint(op.f("uq_audits_job_id"), "audits", ["job_id"])
    op.drop_constraint(op.f("ck_audits_purpose"), "audits", type_="check")
    for column in AUDIT_COLUMNS:
        op.drop_column("audits", column.name)
    _set_kinds(f"kind IN ({KINDS})")


def _set_kinds(condition: str) -> None:
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", condition)
