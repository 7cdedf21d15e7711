"""Access to audits: delegations, budgets, encodings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
TIME = sa.DateTime(timezone=True)
NOW = sa.text("now()")
KINDS = "'seal', 'verify', 'pretrain', 'unlearn', 'audit', 'compare'"


def _references(*columns: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in columns]


def _foreign_keys(table: str, targets: dict[str, str]) -> list[sa.ForeignKeyConstraint]:
    return [
        sa.ForeignKeyConstraint([column], [f"{target}.id"], name=op.f(f"fk_{table}_{column}"))
        for column, target in targets.items()
    ]


def upgrade() -> None:
    """Apply the change; every audit that is there was asked for by its owner."""
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({KINDS}, 'encode')")
    op.add_column("audits", sa.Column("party_id", sa.String(), nullable=True))
    op.execute("UPDATE audits SET party_id = owner_id")
    op.create_foreign_key(op.f("fk_audits_party_id"), "audits", "parties", ["party_id"], ["id"])
    op.create_index("ix_audits_party_id", "audits", ["party_id"])
    _create_delegations()
    op.create_table(
        "queries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        *_references("request_id", "party_id", "kind"),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("views", sa.Integer(), nullable=False),
        sa.Column("at", TIME, server_default=NOW, nullable=False),
        sa.CheckConstraint("kind IN ('audit', 'encode')", name=op.f("ck_queries_kind")),
        *_foreign_keys("queries", {"request_id": "requests", "party_id": "parties"}),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queries")),
    )
    op.create_index("ix_queries_request_id_at", "queries", ["request_id", "at"])
    _create_encodings()


def _create_delegations() -> None:
    op.create_table(
        "delegations",
        *_references("id", "owner_id", "auditor_id"),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("withdrawn_at", TIME, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        *_foreign_keys("delegations", {"owner_id": "parties", "auditor_id": "parties"}),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delegations")),
    )
    for column in ("owner_id", "auditor_id"):
        op.create_index(f"ix_delegations_{column}", "delegations", [column])
    op.create_table(
        "delegation_datasets",
        *_references("delegation_id", "dataset_id"),
        *_foreign_keys(
            "delegation_datasets", {"delegation_id": "delegations", "dataset_id": "datasets"}
        ),
        sa.PrimaryKeyConstraint("delegation_id", "dataset_id", name=op.f("pk_delegation_datasets")),
    )
    op.create_index("ix_delegation_datasets_dataset_id", "delegation_datasets", ["dataset_id"])


def _create_encodings() -> None:
    targets = {
        "request_id": "requests",
        "owner_id": "parties",
        "party_id": "parties",
        "job_id": "jobs",
        "before_checkpoint_id": "checkpoints",
        "after_checkpoint_id": "checkpoints",
    }
    op.create_table(
        "encodings",
        *_references("id", *targets),
        sa.Column("views_key", sa.String(), nullable=True),
        sa.Column("outputs_key", sa.String(), nullable=True),
        sa.Column("receipt", JSONB, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        *_foreign_keys("encodings", targets),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encodings")),
        sa.UniqueConstraint("job_id", name=op.f("uq_encodings_job_id")),
    )
    for column in ("request_id", "owner_id", "party_id"):
        op.create_index(f"ix_encodings_{column}", "encodings", [column])


def downgrade() -> None:
    """Undo the change; encodings and delegations are lost."""
    op.drop_table("encodings")
    op.drop_table("queries")
    op.drop_table("delegation_datasets")
    op.drop_table("delegations")
    op.execute(
        """
        DELETE FROM idempotency_keys WHERE resource_id LIKE 'enc\\_%' OR resource_id LIKE 'dlg\\_%'
        """
    )
    op.execute("DELETE FROM jobs WHERE kind = 'encode'")
    op.drop_index("ix_audits_party_id", table_name="audits")
    op.drop_constraint(op.f("fk_audits_party_id"), "audits", type_="foreignkey")
    op.drop_column("audits", "party_id")
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({KINDS})")
