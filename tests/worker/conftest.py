"""Fixtures of tests that drive jobs against a real PostgreSQL, without HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from tests.worker.lab import Lab, World

from expunge.registry.tables import Table


@pytest.fixture
def lab(engine: Engine, tmp_path: Path) -> Iterator[Lab]:
    yield Lab(engine, tmp_path)
    tables = ", ".join(table.name for table in Table.metadata.sorted_tables if table.name != "log")
    with engine.begin() as connection:
        # Without the triggers that keep the record from being changed.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"TRUNCATE {tables}"))


@pytest.fixture
def world(lab: Lab) -> World:
    return World(lab)


@pytest.fixture
def trained(lab: Lab, world: World) -> World:
    lab.runner.run(lab.pretraining(world.model_owner, world.model, world.training_data))
    return world
