"""An auditor whose delegation has ended: nothing answers that answered before, what they made themselves included."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from tests.api.conftest import Cast, Past, User, problem_of
from tests.api.test_audits import FILES, measured, record
from tests.api.test_encodings import Case

from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import Delegation, Role
from expunge.worker.sealer import Sealer

LISTS = ("/audits", "/datasets", "/encodings", "/requests")


@pytest.fixture(scope="module")
def settings(settings: Settings, signing_key: str) -> Settings:
    return settings.model_copy(update={"signing_key_file": signing_key})


class Acting:
    """An auditor who holds the whole request by delegation, has audited and encoded, and read the papers."""

    def __init__(self, case: Case, auditor: User, seal: Callable[[], None]) -> None:
        self.case, self.auditor = case, auditor
        body = {
            "auditor_id": auditor.id,
            "dataset_ids": [case.dataset],
            "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
        }
        self.delegation = str(case.owner.post("/delegations", body).json()["id"])
        self.audit = str(auditor.post("/audit", {"request_id": case.request}).json()["id"])
        record(case.past, self.audit, *measured(("cat-000", "cat-001")))
        self.encoding = str(case.encode(auditor).json()["id"])
        case.answered(self.encoding)
        seal()
        rows = self.rows()
        (self.row,) = (row["seq"] for row in rows if row["event"] == "completed")

    def rows(self) -> list[dict[str, Any]]:
        answer = self.auditor.get("/log", params={"subject": self.case.request})
        found: list[dict[str, Any]] = answer.json()["items"]
        return found

    def calls(self) -> dict[str, Callable[[], httpx.Response]]:
        """All that the delegation lets the auditor do, by name."""
        case, auditor, request = self.case, self.auditor, self.case.request
        paths = (
            f"/audits/{self.audit}",
            *(f"/audits/{self.audit}/{name}" for name in FILES),
            f"/encodings/{self.encoding}",
            f"/encodings/{self.encoding}/outputs.npz",
            f"/datasets/{case.dataset}",
            f"/datasets/{case.dataset}/samples",
            f"/requests/{request}",
            f"/requests/{request}/residue",
            f"/requests/{request}/certificate",
            f"/log/{self.row}/proof",
        )
        reads = {f"GET {path}": lambda path=path: auditor.get(path) for path in paths}
        return reads | {
            "POST /audit": lambda: auditor.post("/audit", {"request_id": request}),
            "POST /encode": lambda: case.encode(auditor),
            "POST certificate": lambda: auditor.post(f"/requests/{request}/certificate"),
        }

    def end(self, how: str, sessions: Sessions) -> None:
        if how == "withdrawn":
            self.case.owner.http.delete(f"/delegations/{self.delegation}")
            return
        with sessions.begin() as session:
            session.get_one(Delegation, self.delegation).expires_at = datetime.now(UTC)


@pytest.fixture(scope="module")
def case(past: Past, data_owner: User, model_owner: User) -> Case:
    return Case(past, data_owner, model_owner)


@pytest.fixture
def acting(case: Case, cast: Cast, settings: Settings, session_factory: Sessions) -> Acting:
    sealer = Sealer(settings, session_factory)

    def seal() -> None:
        while sealer.step():
            pass

    return Acting(case, cast.party(Role.AUDITOR), seal)


@pytest.mark.parametrize("how", ["withdrawn", "expired"])
def test_every_call_answers_until_the_end_and_none_after_it(
    acting: Acting, session_factory: Sessions, how: str
) -> None:
    calls = acting.calls()
    assert {name for name, call in calls.items() if not call().is_success} == set()
    assert all(acting.auditor.get(path).json()["items"] for path in LISTS)
    acting.end(how, session_factory)
    for call in (*calls.values(), lambda: acting.case.send(acting.case.views(), acting.auditor)):
        problem_of(call(), 404, "not-found")
    # What a party did itself it goes on reading in the log; of others' doing there nothing is left.
    assert {row["actor"] for row in acting.rows()} == {acting.auditor.id}
    for path in LISTS:
        assert acting.auditor.get(path).json()["items"] == []
    owner = acting.case.owner
    assert owner.get(f"/audits/{acting.audit}/report.html").status_code == 200
    assert owner.get(f"/encodings/{acting.encoding}/outputs.npz").status_code == 200


def test_another_auditor_of_the_same_data_reads_nothing_that_this_one_made(
    acting: Acting, cast: Cast
) -> None:
    other = cast.party(Role.AUDITOR)
    body = {
        "auditor_id": other.id,
        "dataset_ids": [acting.case.dataset],
        "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
    }
    assert acting.case.owner.post("/delegations", body).status_code == 201
    for path in (
        f"/audits/{acting.audit}",
        *(f"/audits/{acting.audit}/{name}" for name in FILES),
        f"/encodings/{acting.encoding}",
        f"/encodings/{acting.encoding}/outputs.npz",
    ):
        problem_of(other.get(path), 404, "not-found")
    assert other.get("/audits").json()["items"] == []
    told = str(other.get("/log", params={"subject": acting.case.request}).json())
    assert acting.auditor.id not in told
    problem_of(other.http.delete(f"/delegations/{acting.delegation}"), 403, "forbidden")
    assert acting.delegation not in str(other.get("/delegations").json())
