"""Which weights an audit compares stands in the owner's log before anybody can ask."""

from typing import Any

from sqlalchemy import select
from tests.registry.conftest import Scene, weights

from expunge.registry import checkpoints
from expunge.registry.tables import Checkpoint, LogRow


def rows(scene: Scene, request_id: str) -> dict[str, dict[str, Any]]:
    with scene.house.sessions() as session:
        found = session.scalars(select(LogRow).where(LogRow.subject_id == request_id)).all()
        return {row.event: row.detail for row in found}


def test_both_digests_are_committed_to_as_soon_as_they_are_known(scene: Scene) -> None:
    house = scene.house
    request_id = house.ask(scene.first, scene.model, scene.firsts)
    lease = house.claim(str(house.request(request_id).job_id))
    with house.sessions() as session:
        base = session.get_one(Checkpoint, scene.base)
    before = {"before_checkpoint_id": base.id, "before_digest": base.digest}
    assert rows(scene, request_id)["running"] == before
    stored = weights()
    with house.sessions.begin() as session:
        result = checkpoints.record_unlearned(session, lease, stored, {"seconds": 1.0}).id
    after = {"after_checkpoint_id": result, "after_digest": stored.digest}
    assert rows(scene, request_id)["completed"] == before | after
