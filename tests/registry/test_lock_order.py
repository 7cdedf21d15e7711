"""Models are locked before data sets by everything: what meets in the middle waits, and does not deadlock."""

import threading
import time
from collections.abc import Callable

from sqlalchemy import select, text
from sqlalchemy.orm import Session
from tests.registry.conftest import Scene

from expunge.registry import deletion, models, requests
from expunge.registry.errors import DomainError, NotInTrainingData
from expunge.registry.tables import Dataset

WAIT_SECONDS = 30


def until_waiting(scene: Scene, count: int) -> None:
    """Until so many connections wait for a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        with scene.house.sessions() as session:
            if session.scalar(waiting) == count:
                return
        time.sleep(0.01)
    raise AssertionError(f"{count} do not wait")


def test_a_request_and_a_deletion_of_a_models_control_images_do_not_deadlock(scene: Scene) -> None:
    control = scene.house.sealed(scene.first, scene.model_owner)
    with scene.house.sessions.begin() as session:
        models.set_control(session, scene.model_owner, scene.model, control)
    ended: dict[str, BaseException | None] = {}

    def ask(session: Session) -> None:
        requests.create(
            session,
            scene.first,
            model_id=scene.model,
            dataset_ids=[control],
            method="alignment_calibration",
            params={},
        )

    def delete(session: Session) -> None:
        deletion.start(session, scene.first, control)

    def do(act: Callable[[Session], None]) -> None:
        try:
            with scene.house.sessions.begin() as session:
                act(session)
            ended[act.__name__] = None
        except BaseException as error:
            ended[act.__name__] = error

    threads = [threading.Thread(target=do, args=[act]) for act in (ask, delete)]
    with scene.house.sessions.begin() as session:
        session.execute(select(Dataset).where(Dataset.id == control).with_for_update())
        for number, thread in enumerate(threads, start=1):
            thread.start()
            until_waiting(scene, number)
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert isinstance(ended["ask"], NotInTrainingData)
    # The data set is free of the model's needs only once its grant is withdrawn.
    assert isinstance(ended["delete"], DomainError)
