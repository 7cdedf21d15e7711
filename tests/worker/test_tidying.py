"""The dispatcher tidies up: what was kept long enough is destroyed, without anybody asking."""

from pathlib import Path

from sqlalchemy import Engine, select
from tests.registry.conftest import House, weights

from expunge.registry import checkpoints, jobs, models
from expunge.registry.database import Sessions
from expunge.registry.objects import DirectoryStore
from expunge.registry.settings import Settings
from expunge.registry.tables import Checkpoint, Job, Role
from expunge.worker.dispatcher import Dispatcher


def test_what_was_kept_long_enough_is_destroyed(
    session_factory: Sessions,
    engine: Engine,
    database_url: str,
    directory_store: DirectoryStore,
    tmp_path: Path,
) -> None:
    house = House(session_factory)
    trainer, owner = house.party(Role.MODEL_OWNER), house.party(Role.DATA_OWNER)
    model, data = house.model(trainer), house.sealed(owner, trainer)
    base = house.pretrained(trainer, model, [house.sealed(trainer), data])
    lease = house.claim(str(house.request(house.ask(owner, model, data)).job_id))
    with session_factory.begin() as session:
        models.change_policy(session, trainer, model, {"keep_days": 0})
        checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
    with session_factory.begin() as session:
        for job in session.scalars(select(Job).where(Job.state == "queued")):
            jobs.cancel(session, job, actor="test", reason="over")
    settings = Settings(
        database_url=database_url, object_store=tmp_path.as_uri(), work_dir=tmp_path
    )
    Dispatcher(settings, engine, directory_store).tidy()
    with session_factory() as session:
        assert session.get_one(Checkpoint, base).state == "destroyed"
