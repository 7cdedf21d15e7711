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
SEALED = ("log_leaves", "log_nodes", "tree_heads")


def upgrade() -> None:
    """Apply the change; the rows that are there wait to be sealed."""
    _chain_the_log()
    _add_signing_keys()
    _add_certificates()


def downgrade() -> None:
    """Undo the change; the rows of the log stay, their seals go."""
    op.drop_table("certificates")
    op.execute("DELETE FROM idempotency_keys WHERE resource_id LIKE 'crt\\_%'")
    op.execute("DROP FUNCTION refuse_certificate_change()")
    op.drop_table("signing_keys")
    _unchain_the_log()


def _chain_the_log() -> None:
    op.add_column(
        "log",
        sa.Column("salt", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
    )
    op.create_index(op.f("ix_log_actor"), "log", ["actor"])
    op.create_table(
        "log_unsealed",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_log_unsealed")),
    )
    op.create_table(
        "log_leaves",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.Column("chain_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_log_leaves")),
        sa.UniqueConstraint("seq", name=op.f("uq_log_leaves_seq")),
    )
    op.create_table(
        "log_nodes",
        sa.Column("level", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "number", name=op.f("pk_log_nodes")),
    )
    op.create_table(
        "tree_heads",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root_hash", sa.LargeBinary(), nullable=False),
        sa.Column("chain_hash", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", JSONB, nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_tree_heads")),
    )
    op.execute("INSERT INTO log_unsealed SELECT seq FROM log")
    op.execute(
        """
        CREATE FUNCTION note_unsealed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO log_unsealed SELECT seq FROM appended;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER log_is_sealed_later AFTER INSERT ON log
        REFERENCING NEW TABLE AS appended
        FOR EACH STATEMENT EXECUTE FUNCTION note_unsealed()
        """
    )
    for table in SEALED:
        op.execute(
            f"""
            CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_log_change()
            """
        )


def _unchain_the_log() -> None:
    op.execute("DROP TRIGGER log_is_sealed_later ON log")
    op.execute("DROP FUNCTION note_unsealed()")
    for table in (*reversed(SEALED), "log_unsealed"):
        op.drop_table(table)
    op.drop_index(op.f("ix_log_actor"), table_name="log")
    op.drop_column("log", "salt")


def _add_signing_keys() -> None:
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("pem", sa.String(), nullable=False),
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
