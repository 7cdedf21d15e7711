"""Of many destructions that are due, what goes wrong with one holds up none of the others."""

from pathlib import Path

import pytest
from sqlalchemy import text
from tests.registry.conftest import House

from expunge.registry import datasets, deletion, destruction, orphans
from expunge.registry.objects import DirectoryStore, StoreUnavailable
from expunge.registry.tables import Dataset, Party, Role
from expunge.registry.transitions import move


class StoreWithARule(DirectoryStore):
    """Keeps some objects by a rule of its own, as a legal hold does."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.held: set[str] = set()
        self.away = False

    def delete(self, key: str) -> None:
        if key in self.held:
            raise StoreUnavailable(f"{key}: 403 AccessDenied")
        super().delete(key)

    def check(self) -> None:
        if self.away:
            raise StoreUnavailable("away")
        super().check()


@pytest.fixture
def store(tmp_path: Path) -> StoreWithARule:
    return StoreWithARule(tmp_path / "objects")


def deleted(house: House, store: StoreWithARule, owner: Party, data: bytes, folder: Path) -> str:
    """A data set of one object whose deletion has begun."""
    key = orphans.put_bytes(house.sessions, store, data, folder)
    with house.sessions.begin() as session:
        row = datasets.create(session, owner, data.decode())
        move(session, row, "sealing")
        move(session, row, "sealed", digest="sha256:0", index_key=key)
        orphans.named(session, [key])
    with house.sessions.begin() as session:
        deletion.start(session, owner, row.id)
    return row.id


def states(house: House, ids: list[str]) -> list[str]:
    with house.sessions() as session:
        return [session.get_one(Dataset, each).state for each in ids]


def test_one_that_the_store_refuses_waits_and_the_others_end(
    house: House, store: StoreWithARule, tmp_path: Path
) -> None:
    owner = house.party(Role.DATA_OWNER)
    ids = [deleted(house, store, owner, f"set {n}".encode(), tmp_path) for n in range(3)]
    with house.sessions() as session:
        held = session.execute(
            text("SELECT key FROM doomed_objects WHERE subject_id = :id"), {"id": ids[0]}
        ).scalar_one()
    store.held.add(held)
    found = destruction.finish_all(house.sessions, store)
    assert (found.ended, list(found.failed)) == (ids[1:], ids[:1])
    assert "AccessDenied" in found.failed[ids[0]]
    assert states(house, ids) == ["deleting", "deleted", "deleted"]
    store.held.clear()
    assert destruction.finish_all(house.sessions, store).ended == ids[:1]


def test_a_store_that_is_away_ends_the_round(
    house: House, store: StoreWithARule, tmp_path: Path
) -> None:
    owner = house.party(Role.DATA_OWNER)
    ids = [deleted(house, store, owner, f"away {n}".encode(), tmp_path) for n in range(2)]
    store.held, store.away = set(store.keys()), True
    with pytest.raises(StoreUnavailable, match="away"):
        destruction.finish_all(house.sessions, store)
    store.held, store.away = set(), False
    assert destruction.finish_all(house.sessions, store).ended == ids
