"""Initial schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.create_table(
        "log",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("subject_id", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column(
            "detail", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_log")),
    )
    op.create_index(op.f("ix_log_subject_id"), "log", ["subject_id"], unique=False)
    op.create_table(
        "parties",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "role IN ('operator', 'model_owner', 'data_owner', 'auditor')",
            name=op.f("ck_parties_role"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_parties")),
        sa.UniqueConstraint("name", name=op.f("uq_parties_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("party_id", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_api_keys_party_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_keys_secret_sha256")),
    )
    op.create_index(op.f("ix_api_keys_party_id"), "api_keys", ["party_id"], unique=False)
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column(
            "problem", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("index_key", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'sealed') = (digest IS NOT NULL)", name=op.f("ck_datasets_sealed_digest")
        ),
        sa.CheckConstraint(
            "state IN ('open', 'sealing', 'sealed', 'invalid')", name=op.f("ck_datasets_state")
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["parties.id"], name=op.f("fk_datasets_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("owner_id", "name", name=op.f("uq_datasets_owner_id_name")),
    )
    op.create_index(op.f("ix_datasets_owner_id"), "datasets", ["owner_id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("party_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("body_sha256", sa.String(), nullable=False),
        sa.Column("resource_id", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["party_id"], ["parties.id"], name=op.f("fk_idempotency_keys_party_id")
        ),
        sa.PrimaryKeyConstraint("party_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "grants",
        sa.Column("dataset_id", sa.String(), nullable=False),
        sa.Column("party_id", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_grants_dataset_id")),
        sa.ForeignKeyConstraint(["party_id"], ["parties.id"], name=op.f("fk_grants_party_id")),
        sa.PrimaryKeyConstraint("dataset_id", "party_id", name=op.f("pk_grants")),
    )
    op.create_index(op.f("ix_grants_party_id"), "grants", ["party_id"], unique=False)
    op.create_table(
        "models",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column(
            "encoder", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column(
            "policy", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("head_checkpoint_id", sa.String(), nullable=True),
        sa.Column("control_dataset_id", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["control_dataset_id"], ["datasets.id"], name=op.f("fk_models_control_dataset_id")
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["parties.id"], name=op.f("fk_models_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("owner_id", "name", name=op.f("uq_models_owner_id_name")),
    )
    op.create_index(op.f("ix_models_owner_id"), "models", ["owner_id"], unique=False)
    op.create_table(
        "shards",
        sa.Column("dataset_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("object_key", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_shards_dataset_id")),
        sa.PrimaryKeyConstraint("dataset_id", "name", name=op.f("pk_shards")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("parent_id", sa.String(), nullable=True),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column(
            "problem", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("object_key", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("release_digest", sa.String(), nullable=False),
        sa.Column("release_key", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "state IN ('checking', 'ready', 'invalid')", name=op.f("ck_checkpoints_state")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_checkpoints_model_id")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["checkpoints.id"], name=op.f("fk_checkpoints_parent_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
    )
    op.create_index(op.f("ix_checkpoints_model_id"), "checkpoints", ["model_id"], unique=False)
    op.create_table(
        "checkpoint_datasets",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(), nullable=False),
        sa.Column("forgotten", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_checkpoint_datasets_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_checkpoint_datasets_dataset_id")
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "dataset_id", name=op.f("pk_checkpoint_datasets")),
    )
    op.create_index(
        op.f("ix_checkpoint_datasets_dataset_id"),
        "checkpoint_datasets",
        ["dataset_id"],
        unique=False,
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("model_id", sa.String(), nullable=True),
        sa.Column("dataset_id", sa.String(), nullable=True),
        sa.Column("checkpoint_id", sa.String(), nullable=True),
        sa.Column(
            "params", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column(
            "progress", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column(
            "metrics", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
        ),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.String(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("base_checkpoint_id", sa.String(), nullable=True),
        sa.Column("result_checkpoint_id", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('running', 'evaluating')) = (lease_token IS NOT NULL)",
            name=op.f("ck_jobs_lease"),
        ),
        sa.CheckConstraint(
            "kind IN ('seal', 'verify', 'pretrain', 'unlearn', 'audit')", name=op.f("ck_jobs_kind")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'evaluating', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.ForeignKeyConstraint(
            ["base_checkpoint_id"], ["checkpoints.id"], name=op.f("fk_jobs_base_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_jobs_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_jobs_dataset_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_jobs_model_id")),
        sa.ForeignKeyConstraint(
            ["result_checkpoint_id"], ["checkpoints.id"], name=op.f("fk_jobs_result_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_model_id"), "jobs", ["model_id"], unique=False)
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'running', 'evaluating')"),
    )
    op.create_index(
        "uq_jobs_one_running_per_model",
        "jobs",
        ["model_id"],
        unique=True,
        postgresql_where=sa.text(
            "state IN ('running', 'evaluating') AND kind IN ('pretrain', 'unlearn')"
        ),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column(
            "params", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False
        ),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "state IN ('received', 'approved', 'queued', 'running', 'completed', 'failed', 'cancelled', 'rejected')",
            name=op.f("ck_requests_state"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_requests_job_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_requests_model_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["parties.id"], name=op.f("fk_requests_owner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
    )
    op.create_index(op.f("ix_requests_job_id"), "requests", ["job_id"], unique=False)
    op.create_index(op.f("ix_requests_model_id"), "requests", ["model_id"], unique=False)
    op.create_index(op.f("ix_requests_owner_id"), "requests", ["owner_id"], unique=False)
    op.create_table(
        "audits",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("before_checkpoint_id", sa.String(), nullable=False),
        sa.Column("after_checkpoint_id", sa.String(), nullable=False),
        sa.Column(
            "report", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True
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
            ["after_checkpoint_id"], ["checkpoints.id"], name=op.f("fk_audits_after_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(
            ["before_checkpoint_id"],
            ["checkpoints.id"],
            name=op.f("fk_audits_before_checkpoint_id"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_audits_job_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["parties.id"], name=op.f("fk_audits_owner_id")),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name=op.f("fk_audits_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audits")),
        sa.UniqueConstraint("job_id", name=op.f("uq_audits_job_id")),
    )
    op.create_index(op.f("ix_audits_owner_id"), "audits", ["owner_id"], unique=False)
    op.create_index(op.f("ix_audits_request_id"), "audits", ["request_id"], unique=False)
    op.create_table(
        "request_datasets",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_request_datasets_dataset_id")
        ),
        sa.ForeignKeyConstraint(
            ["request_id"], ["requests.id"], name=op.f("fk_request_datasets_request_id")
        ),
        sa.PrimaryKeyConstraint("request_id", "dataset_id", name=op.f("pk_request_datasets")),
    )
    op.create_index(
        op.f("ix_request_datasets_dataset_id"), "request_datasets", ["dataset_id"], unique=False
    )
    op.create_foreign_key(
        op.f("fk_models_head_checkpoint_id"),
        "models",
        "checkpoints",
        ["head_checkpoint_id"],
        ["id"],
    )
    op.create_foreign_key(op.f("fk_checkpoints_job_id"), "checkpoints", "jobs", ["job_id"], ["id"])
    op.execute(
        """
        CREATE FUNCTION refuse_log_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'the log is append-only';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER log_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON log
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_log_change()
        """
    )


def downgrade() -> None:
    """Undo the change."""
    op.drop_constraint(op.f("fk_models_head_checkpoint_id"), "models", type_="foreignkey")
    op.drop_constraint(op.f("fk_checkpoints_job_id"), "checkpoints", type_="foreignkey")
    op.execute("DROP TRIGGER log_is_append_only ON log")
    op.execute("DROP FUNCTION refuse_log_change()")
    op.drop_index(op.f("ix_request_datasets_dataset_id"), table_name="request_datasets")
    op.drop_table("request_datasets")
    op.drop_index(op.f("ix_audits_request_id"), table_name="audits")
    op.drop_index(op.f("ix_audits_owner_id"), table_name="audits")
    op.drop_table("audits")
    op.drop_index(op.f("ix_requests_owner_id"), table_name="requests")
    op.drop_index(op.f("ix_requests_model_id"), table_name="requests")
    op.drop_index(op.f("ix_requests_job_id"), table_name="requests")
    op.drop_table("requests")
    op.drop_index(
        "uq_jobs_one_running_per_model",
        table_name="jobs",
        postgresql_where=sa.text(
            "state IN ('running', 'evaluating') AND kind IN ('pretrain', 'unlearn')"
        ),
    )
    op.drop_index(
        "ix_jobs_open",
        table_name="jobs",
        postgresql_where=sa.text("state IN ('queued', 'running', 'evaluating')"),
    )
    op.drop_index(op.f("ix_jobs_model_id"), table_name="jobs")
    op.drop_table("jobs")
    op.drop_index(op.f("ix_checkpoint_datasets_dataset_id"), table_name="checkpoint_datasets")
    op.drop_table("checkpoint_datasets")
    op.drop_index(op.f("ix_checkpoints_model_id"), table_name="checkpoints")
    op.drop_table("checkpoints")
    op.drop_table("shards")
    op.drop_index(op.f("ix_models_owner_id"), table_name="models")
    op.drop_table("models")
    op.drop_index(op.f("ix_grants_party_id"), table_name="grants")
    op.drop_table("grants")
    op.drop_table("idempotency_keys")
    op.drop_index(op.f("ix_datasets_owner_id"), table_name="datasets")
    op.drop_table("datasets")
    op.drop_index(op.f("ix_api_keys_party_id"), table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_table("parties")
    op.drop_index(op.f("ix_log_subject_id"), table_name="log")
    op.drop_table("log")
