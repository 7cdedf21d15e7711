"""The record: the chained log, signing keys, certificates."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
JSONB = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())


def upgrade() -> None:
    """Apply the change."""
    _add_signing_keys()
    _add_certificates()


def downgrade() -> None:
    """Undo the change."""
    op.drop_table("certificates")
    op.execute("DROP FUNCTION refuse_certificate_change()")
    op.drop_table("signing_keys")


def _add_signing_keys() -> None:
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", TIME, nullable=True),
        sa.Column("introduced_by", JSONB, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
        sa.UniqueConstraint(
            "retired_at",
            name=op.f("uq_signing_keys_retired_at"),
            postgresql_nulls_not_distinct=True,
        ),
    )


def _add_certificates() -> None:
    op.create_table(
        "certificates",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("edition", sa.Integer(), nullable=False),
        sa.Column("envelope", JSONB, nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"], ["requests.id"], name=op.f("fk_certificates_request_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificates")),
        sa.UniqueConstraint(
            "request_id", "edition", name=op.f("uq_certificates_request_id_edition")
        ),
    )
    op.execute(
        """
        CREATE FUNCTION refuse_certificate_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'a certificate never changes';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER certificates_never_change BEFORE UPDATE OR DELETE OR TRUNCATE ON certificates
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_certificate_change()
        """
    )
