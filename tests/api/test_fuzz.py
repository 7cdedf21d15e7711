"""Generated calls by everybody to every route: no server error, nothing undocumented, nothing of other parties."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from tests.api.conftest import Past
from tests.api.removed import quick_worker
from tests.fuzzing.campaigns import Campaign, Plan
from tests.fuzzing.files import known_to_schemathesis
from tests.fuzzing.islands import World
from tests.fuzzing.judging import Judge
from tests.fuzzing.sending import Sender

from expunge.evidence.signing import Signer
from expunge.registry.settings import Settings
from expunge.worker.sealer import Sealer

CALLERS = ("owner-1", "model-owner-1", "auditor-1", "owner-2")
PLAN = Plan(seed=6, edges=0, draws=1, tokens=40, chains=0, reads=0, callers=CALLERS)
"""A little of what `make fuzz` sends by the thousand."""


@pytest.fixture(scope="module")
def settings(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With a signing key."""
    folder = tmp_path_factory.mktemp("service")
    Signer.create(folder / "key.pem")
    return Settings(
        database_url=database_url,
        object_store=(folder / "objects").as_uri(),
        work_dir=folder / "work",
        device="cpu",
        signing_key_file=str(folder / "key.pem"),
    )


@pytest.fixture(scope="module")
def world(past: Past, url: str, engine: Engine, settings: Settings) -> Iterator[World]:
    """Parties of every role, twice, and somebody without a key."""
    sealer = Sealer(settings, past.sessions)

    def seal() -> None:
        while sealer.step():
            pass

    with quick_worker(settings, engine):
        world = World.build(past, url, PLAN.seed, seal)
        yield world
        world.close()


def test_no_generated_call_finds_a_fault(world: World, tmp_path: Path) -> None:
    known_to_schemathesis(tmp_path, PLAN.seed)
    judge = Judge(world)
    sender = Sender(world, judge, PLAN.seed)
    Campaign(sender, PLAN).run(0)
    assert [f"{each.kind}: {each.example}" for each in judge.findings.values()] == []
    statuses = {status for _, _, status in judge.answers}
    assert {200, 403, 404, 422} <= statuses
    assert sender.unsendable < sender.sent / 10
