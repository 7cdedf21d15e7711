"""A version after this one: its schema, made by a migration that this version does not have."""

from pathlib import Path

from alembic import command
from sqlalchemy import Engine

from expunge.registry.migration import SCRIPTS, configuration, newest

LATER = "9999"
"""Its revision."""
HEAD = """
import sqlalchemy as sa
from alembic import op

revision = "{later}"
down_revision = "{newest}"
branch_labels = None
depends_on = None
"""
BODY = """

def upgrade():
    op.add_column("jobs", sa.Column("mood", sa.String(), nullable=True))
    op.add_column(
        "checkpoints", sa.Column("colour", sa.String(), nullable=False, server_default="red")
    )
    op.create_table(
        "dreams",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("job_id", sa.String(), sa.ForeignKey("jobs.id"), nullable=False),
    )
    op.drop_constraint("ck_jobs_kind", "jobs")
    op.create_check_constraint("ck_jobs_kind", "jobs", "kind <> ''")
"""
EXPANDING = HEAD + "expands = True\n" + BODY
"""Adds only what this version need not know, and says so."""
SILENT = HEAD + BODY
"""Does the same, and says nothing."""


def upgraded_with(engine: Engine, script: str, folder: Path) -> None:
    """Bring a database of this version's schema to the next version's."""
    text = script.format(later=LATER, newest=newest())
    (folder / f"{LATER}_later.py").write_text(text)
    config = configuration(engine.url.render_as_string(hide_password=False))
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", f"{SCRIPTS / 'versions'}:{folder}")
    command.upgrade(config, LATER)
