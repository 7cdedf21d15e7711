"""After a removal: checkpoints and data sets that are destroyed, and the objects whose end is promised."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
STATES = {
    "datasets": ("'open', 'sealing', 'sealed', 'invalid'", "'deleting', 'deleted'"),
    "checkpoints": ("'checking', 'ready', 'invalid'", "'destroying', 'destroyed'"),
}
"""Of each table: the states before, and those that are new."""
SEALED_DIGEST = "(state = 'sealed') = (digest IS NOT NULL)"


def upgrade() -> None:
    """Apply the change."""
    for table, (before, new) in STATES.items():
        op.drop_constraint(op.f(f"ck_{table}_state"), table, type_="check")
        op.create_check_constraint(op.f(f"ck_{table}_state"), table, f"state IN ({before}, {new})")
    op.drop_constraint(op.f("ck_datasets_sealed_digest"), "datasets", type_="check")
    op.create_check_constraint(
        op.f("ck_datasets_sealed_digest"),
        "datasets",
        f"state IN ('deleting', 'deleted') OR {SEALED_DIGEST}",
    )
    op.drop_constraint(op.f("uq_datasets_owner_id_name"), "datasets", type_="unique")
    op.create_index(
        "uq_datasets_owner_id_name",
        "datasets",
        ["owner_id", "name"],
        unique=True,
        postgresql_where=sa.text("name <> ''"),
    )
    op.add_column("datasets", sa.Column("deleted_at", TIME, nullable=True))
    op.add_column("checkpoints", sa.Column("destroyed_at", TIME, nullable=True))
    op.create_table(
        "doomed_objects",
        sa.Column("subject_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("subject_id", "key", name=op.f("pk_doomed_objects")),
    )


def downgrade() -> None:
    """Undo the change; what was destroyed is invalid, since its objects are gone."""
    op.drop_table("doomed_objects")
    op.execute(
        """
        UPDATE datasets SET name = id, state = 'invalid', digest = NULL,
            problem = '{"code": "deleted", "detail": "Its objects were removed."}'
        WHERE state IN ('deleting', 'deleted')
        """
    )
    op.execute(
        """
        UPDATE checkpoints SET state = 'invalid',
            problem = '{"code": "destroyed", "detail": "Its objects were removed."}'
        WHERE state IN ('destroying', 'destroyed')
        """
    )
    op.drop_column("checkpoints", "destroyed_at")
    op.drop_column("datasets", "deleted_at")
    op.drop_index("uq_datasets_owner_id_name", table_name="datasets")
    op.create_unique_constraint(op.f("uq_datasets_owner_id_name"), "datasets", ["owner_id", "name"])
    op.drop_constraint(op.f("ck_datasets_sealed_digest"), "datasets", type_="check")
    op.create_check_constraint(op.f("ck_datasets_sealed_digest"), "datasets", SEALED_DIGEST)
    for table, (before, _) in STATES.items():
        op.drop_constraint(op.f(f"ck_{table}_state"), table, type_="check")
        op.create_check_constraint(op.f(f"ck_{table}_state"), table, f"state IN ({before})")
