"""One running service for all tests of this folder that can share it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.reference import quick_weights
from tests.faults.rig import Rig
from tests.faults.users import Cast


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to upload."""
    return quick_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def shared_rig() -> Iterator[Rig]:
    # Not below pytest's own folder, which other accounts cannot enter: PostgreSQL runs as one.
    with tempfile.TemporaryDirectory(prefix="expunge-faults-") as folder, Rig(Path(folder)) as rig:
        yield rig


@pytest.fixture(scope="session")
def cast(shared_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    """Parties and data sets that every test may use for models of its own."""
    with Cast(shared_rig, tmp_path_factory.mktemp("cast")) as cast:
        yield cast


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The shared service, at rest before and after, with its promise kept."""
    yield shared_rig
    shared_rig.check_at_rest()
