"""Jobs that survive: owners, leases' history, snapshots, clocks of requests, objects about to be named."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
TIME = sa.DateTime(timezone=True)
JOB_COLUMNS = (
    sa.Column("owner_id", sa.String(), nullable=True),
    sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
    sa.Column("outages", sa.Integer(), nullable=False, server_default="0"),
    sa.Column("failure", JSONB, nullable=True),
    sa.Column("worker", sa.String(), nullable=True),
    sa.Column("claimed_at", TIME, nullable=True),
    sa.Column("seconds_used", sa.Float(), nullable=False, server_default="0"),
    sa.Column("snapshot_key", sa.String(), nullable=True),
    sa.Column("snapshot_step", sa.Integer(), nullable=True),
)
REQUEST_COLUMNS = (
    sa.Column(
        "deadline_at", TIME, nullable=True, server_default=sa.text("now() + interval '1 month'")
    ),
    sa.Column("finished_at", TIME, nullable=True),
    sa.Column("effective_at", TIME, nullable=True),
)
CHECKPOINT_COLUMNS = (
    sa.Column("drift", JSONB, nullable=True),
    sa.Column("promoted_at", TIME, nullable=True),
)
DEFAULTED = ("priority", "outages", "seconds_used")
"""Filled for the rows that are there; the program sets them from now on."""


def upgrade() -> None:
    """Apply the change; owners, clocks and promotions of what is there are taken from rows and log."""
    for column in JOB_COLUMNS:
        op.add_column("jobs", column)
    for column in REQUEST_COLUMNS:
        op.add_column("requests", column)
    for column in CHECKPOINT_COLUMNS:
        op.add_column("checkpoints", column)
    for name in DEFAULTED:
        op.alter_column("jobs", name, server_default=None)
    op.execute(
        """
        UPDATE jobs SET owner_id = coalesce(
            (SELECT owner_id FROM models WHERE models.id = jobs.model_id),
            (SELECT owner_id FROM datasets WHERE datasets.id = jobs.dataset_id),
            (SELECT models.owner_id FROM checkpoints JOIN models ON models.id = model_id
             WHERE checkpoints.id = jobs.checkpoint_id),
            (SELECT owner_id FROM audits WHERE audits.job_id = jobs.id)
        )
        """
    )
    op.execute(
        """
        UPDATE jobs SET claimed_at = started_at WHERE lease_token IS NOT NULL
        """
    )
    op.execute(
        """
        UPDATE requests SET deadline_at = created_at + interval '1 month',
            finished_at = CASE WHEN state IN ('completed', 'failed', 'cancelled', 'rejected')
                          THEN updated_at END
        """
    )
    op.execute(
        """
        UPDATE checkpoints SET promoted_at = (
            SELECT min(at) FROM log
            WHERE event = 'promoted' AND subject_id = model_id
              AND detail ->> 'checkpoint_id' = checkpoints.id
        )
        """
    )
    op.execute(
        """
        UPDATE requests SET effective_at = (
            SELECT min(promoted_at) FROM checkpoints
            WHERE checkpoints.model_id = requests.model_id AND promoted_at >= requests.created_at
              AND NOT EXISTS (
                SELECT FROM request_datasets asked
                JOIN checkpoint_datasets held ON held.dataset_id = asked.dataset_id
                WHERE asked.request_id = requests.id AND held.checkpoint_id = checkpoints.id
                  AND NOT held.forgotten
              )
        ) WHERE state = 'completed'
        """
    )
    op.alter_column("jobs", "owner_id", nullable=False)
    op.alter_column("requests", "deadline_at", nullable=False)
    op.create_foreign_key(op.f("fk_jobs_owner_id"), "jobs", "parties", ["owner_id"], ["id"])
    op.create_index("ix_jobs_owner_id_claimed_at", "jobs", ["owner_id", "claimed_at"])
    op.create_table(
        "pending_objects",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("noted_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("lease_token", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_pending_objects")),
    )


def downgrade() -> None:
    """Undo the change; snapshots of unfinished jobs are forgotten, so that they start anew."""
    op.drop_table("pending_objects")
    op.drop_index("ix_jobs_owner_id_claimed_at", table_name="jobs")
    op.drop_constraint(op.f("fk_jobs_owner_id"), "jobs", type_="foreignkey")
    for table, columns in (
        ("checkpoints", CHECKPOINT_COLUMNS),
        ("requests", REQUEST_COLUMNS),
        ("jobs", JOB_COLUMNS),
    ):
        for column in columns:
            op.drop_column(table, column.name)
