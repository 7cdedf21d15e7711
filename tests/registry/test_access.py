"""Who may ask about a request, and how often in a day."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.registry.conftest import House, Scene

from expunge.registry import access, delegations, requests
from expunge.registry.access import Budget, BudgetSpent
from expunge.registry.errors import Conflict, Invalid, NotFound
from expunge.registry.tables import Dataset, LogRow, Party, Query, Role

AMPLE = Budget(queries=100, sample_views=1000)


@pytest.fixture
def request_id(scene: Scene) -> str:
    return scene.house.ask(scene.first, scene.model, scene.firsts)


def admit(scene: Scene, party: Party, request_id: str, **options: Any) -> access.Admission:
    with scene.house.sessions.begin() as session:
        admission = access.open_to(session, party, request_id)
        settings: dict[str, Any] = {"kind": "audit", "budget": AMPLE, "samples": 1} | options
        access.charge(session, party, admission, **settings)
        return admission


def delegate(house: House, owner: Party, auditor: Party, *dataset_ids: str, days: float = 1) -> str:
    with house.sessions.begin() as session:
        return delegations.create(
            session,
            owner,
            auditor_id=auditor.id,
            dataset_ids=list(dataset_ids),
            expires_at=datetime.now(UTC) + timedelta(days=days),
        ).id


def queries(scene: Scene, request_id: str) -> list[Query]:
    with scene.house.sessions() as session:
        return list(session.scalars(select(Query).where(Query.request_id == request_id)))


class TestWhoMayAsk:
    def test_the_owner_asks_about_all_of_it(self, scene: Scene, request_id: str) -> None:
        assert admit(scene, scene.first, request_id).dataset_ids == [scene.firsts]

    def test_nobody_else_does(self, scene: Scene, request_id: str) -> None:
        auditor = scene.house.party(Role.AUDITOR)
        for party in (scene.second, scene.model_owner, auditor):
            with pytest.raises(NotFound):
                admit(scene, party, request_id)
        assert queries(scene, request_id) == []

    def test_another_owners_request_and_none_are_told_alike(
        self, scene: Scene, request_id: str
    ) -> None:
        missing = f"req_{'0' * 32}"
        told = []
        for each in (request_id, missing):
            with pytest.raises(NotFound) as error:
                admit(scene, scene.second, each)
            told.append((str(error.value).replace(each, "ID"), error.value.extensions))
        assert told[0] == told[1]

    def test_an_auditor_asks_about_what_is_delegated(self, scene: Scene) -> None:
        house, auditor = scene.house, scene.house.party(Role.AUDITOR)
        more = house.sealed(scene.first, scene.model_owner)
        model = house.model(scene.model_owner)
        house.pretrained(scene.model_owner, model, [scene.own, scene.firsts, more])
        with house.sessions.begin() as session:
            request_id = ask(session, scene, model, [scene.firsts, more])
        delegate(house, scene.first, auditor, more)
        assert admit(scene, auditor, request_id).dataset_ids == [more]

    @pytest.mark.parametrize("end", ["withdrawn", "expired"])
    def test_until_the_delegation_ends(self, scene: Scene, request_id: str, end: str) -> None:
        house, auditor = scene.house, scene.house.party(Role.AUDITOR)
        delegation = delegate(house, scene.first, auditor, scene.firsts)
        admit(scene, auditor, request_id)
        with house.sessions.begin() as session:
            if end == "withdrawn":
                delegations.withdraw(session, scene.first, delegation)
                delegations.withdraw(session, scene.first, delegation)
            else:
                row = session.get_one(delegations.Delegation, delegation)
                row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
        with pytest.raises(NotFound):
            admit(scene, auditor, request_id)


def ask(session: Any, scene: Scene, model: str, dataset_ids: list[str]) -> str:
    return requests.create(
        session,
        scene.first,
        model_id=model,
        dataset_ids=dataset_ids,
        method="alignment_calibration",
        params={},
    ).id


class TestBudget:
    def test_every_admission_is_one_row_and_one_log_row(
        self, scene: Scene, request_id: str
    ) -> None:
        admit(scene, scene.first, request_id, samples=3, views=2)
        admit(scene, scene.first, request_id, kind="encode", samples=1)
        found = [(row.kind, row.samples, row.views) for row in queries(scene, request_id)]
        assert found == [("audit", 3, 2), ("encode", 1, 1)]
        with scene.house.sessions() as session:
            rows = session.scalars(
                select(LogRow)
                .where(LogRow.subject_id == request_id, LogRow.event == access.QUERIED)
                .order_by(LogRow.seq)
            ).all()
        assert {row.actor for row in rows} == {scene.first.id}
        assert [row.detail for row in rows] == [
            {"kind": "audit", "samples": 3, "views": 2},
            {"kind": "encode", "samples": 1, "views": 1},
        ]

    def test_one_query_too_many_is_told_what_is_allowed_and_when(
        self, scene: Scene, request_id: str
    ) -> None:
        for _ in range(2):
            admit(scene, scene.first, request_id, samples=1, budget=Budget(2, 100))
        with pytest.raises(BudgetSpent) as error:
            admit(scene, scene.first, request_id, samples=1, budget=Budget(2, 100))
        told = error.value.extensions
        assert told["allowed"] == {"queries": 2, "sample_views": 100}
        assert told["used"] == {"queries": 2, "sample_views": 2}
        assert 0 < told["retry_after_seconds"] <= 24 * 3600
        assert len(queries(scene, request_id)) == 2, "what is refused is not charged"

    def test_views_of_samples_are_limited_as_well(self, scene: Scene, request_id: str) -> None:
        budget = Budget(100, 20)
        admit(scene, scene.first, request_id, samples=2, views=8, budget=budget)
        with pytest.raises(BudgetSpent):
            admit(scene, scene.first, request_id, samples=1, views=5, budget=budget)
        admit(scene, scene.first, request_id, samples=1, views=4, budget=budget)

    def test_a_new_day_has_a_new_budget(self, scene: Scene, request_id: str) -> None:
        admit(scene, scene.first, request_id, samples=1, budget=Budget(1, 10))
        with scene.house.sessions.begin() as session:
            session.execute(update(Query).values(at=Query.at - timedelta(days=1)))
        admit(scene, scene.first, request_id, samples=1, budget=Budget(1, 10))

    def test_calls_at_once_do_not_share_a_query(self, scene: Scene, request_id: str) -> None:
        def attempt(_: int) -> bool:
            try:
                admit(scene, scene.first, request_id, samples=1, budget=Budget(3, 100))
            except BudgetSpent:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 3


class TestDelegating:
    @pytest.mark.parametrize("days", [-1, 0, 367])
    def test_it_ends_within_a_year(self, scene: Scene, days: float) -> None:
        auditor = scene.house.party(Role.AUDITOR)
        with pytest.raises(Invalid, match="year"):
            delegate(scene.house, scene.first, auditor, scene.firsts, days=days)

    def test_only_own_data_sets(self, scene: Scene) -> None:
        auditor = scene.house.party(Role.AUDITOR)
        with pytest.raises(NotFound):
            delegate(scene.house, scene.first, auditor, scene.seconds)

    def test_only_sealed_ones(self, scene: Scene) -> None:
        auditor = scene.house.party(Role.AUDITOR)
        with scene.house.sessions.begin() as session:
            row = Dataset(id=f"dst_{'1' * 32}", owner_id=scene.first.id, name="open")
            session.add(row)
        with pytest.raises(Conflict):
            delegate(scene.house, scene.first, auditor, f"dst_{'1' * 32}")

    def test_only_to_auditors_and_others_are_told_like_nobody(self, scene: Scene) -> None:
        missing = Party(id=f"pty_{'0' * 32}", name="nobody", role=Role.AUDITOR)
        told = set()
        for party in (scene.second, missing):
            with pytest.raises(NotFound) as error:
                delegate(scene.house, scene.first, party, scene.firsts)
            told.add(str(error.value).replace(party.id, "ID"))
        assert len(told) == 1

    def test_only_its_owner_withdraws_it(self, scene: Scene) -> None:
        auditor = scene.house.party(Role.AUDITOR)
        delegation = delegate(scene.house, scene.first, auditor, scene.firsts)
        for party in (scene.second, auditor):
            with scene.house.sessions.begin() as session, pytest.raises(NotFound):
                delegations.withdraw(session, party, delegation)
