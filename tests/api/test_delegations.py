"""An auditor acts for an owner: within what is delegated, and only as long as it is."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.api.conftest import Cast, Past, User, problem_of

from expunge.registry.database import Sessions
from expunge.registry.tables import Delegation, Role


def days_from_now(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


class Case:
    """A completed request about two data sets, one of which is delegated."""

    def __init__(self, past: Past, owner: User, model_owner: User, auditor: User) -> None:
        self.owner, self.auditor = owner, auditor
        self.shown, self.hidden = (past.granted(owner, model_owner) for _ in range(2))
        self.model = model_owner.model()
        trained = [past.sealed(model_owner), self.shown, self.hidden]
        past.trained(model_owner, self.model, trained)
        request = owner.post(
            "/requests", {"model_id": self.model, "dataset_ids": [self.shown, self.hidden]}
        )
        self.request = str(request.json()["id"])
        past.unlearned(self.request)

    def delegate(self, *dataset_ids: str, days: float = 1) -> str:
        answer = self.owner.post(
            "/delegations",
            {
                "auditor_id": self.auditor.id,
                "dataset_ids": list(dataset_ids or [self.shown]),
                "expires_at": days_from_now(days),
            },
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def withdraw(self, delegation: str) -> None:
        assert self.owner.http.delete(f"/delegations/{delegation}").status_code == 204

    def audit(self, user: User, **body: Any) -> Any:
        return user.post("/audit", {"request_id": self.request} | body)


@pytest.fixture
def case(past: Past, data_owner: User, model_owner: User, cast: Cast) -> Case:
    return Case(past, data_owner, model_owner, cast.party(Role.AUDITOR))


def ids(user: User, path: str) -> list[str]:
    return [each["id"] for each in user.get(path).json()["items"]]


def test_an_auditor_sees_the_delegated_part_and_nothing_else(case: Case) -> None:
    auditor = case.auditor
    for path in ("/datasets", "/requests", "/delegations"):
        assert ids(auditor, path) == []
    delegation = case.delegate()
    assert ids(auditor, "/datasets") == [case.shown]
    assert ids(auditor, "/requests") == [case.request]
    assert ids(auditor, "/delegations") == [delegation]
    shown = auditor.get(f"/requests/{case.request}").json()
    assert shown["dataset_ids"] == [case.shown]
    assert auditor.get("/requests").json()["items"][0]["dataset_ids"] == [case.shown]
    assert auditor.get(f"/datasets/{case.shown}").json()["granted_to"] is None
    for path in (f"/datasets/{case.hidden}", f"/datasets/{case.hidden}/samples"):
        problem_of(auditor.get(path), 404, "not-found")
    own = case.owner.get(f"/requests/{case.request}").json()
    assert set(own["dataset_ids"]) == {case.shown, case.hidden}


def test_an_auditor_audits_the_delegated_part(case: Case) -> None:
    case.delegate()
    audit = case.audit(case.auditor)
    assert audit.status_code == 202, audit.text
    assert audit.json()["dataset_ids"] == [case.shown]
    audit_id = audit.json()["id"]
    assert ids(case.auditor, "/audits") == [audit_id]
    assert case.owner.get(f"/audits/{audit_id}").status_code == 200, "the owner reads it as well"
    refused = case.audit(case.auditor, dataset_ids=[case.hidden])
    assert problem_of(refused, 422, "invalid")["allowed"] == [case.shown]


def test_an_auditor_does_not_see_what_the_owner_asked(case: Case) -> None:
    case.delegate()
    audit_id = case.audit(case.owner).json()["id"]
    problem_of(case.auditor.get(f"/audits/{audit_id}"), 404, "not-found")
    assert ids(case.auditor, "/audits") == []


@pytest.mark.parametrize("end", ["withdrawn", "expired"])
def test_when_the_delegation_ends_everything_is_gone_at_once(
    case: Case, session_factory: Sessions, end: str
) -> None:
    delegation = case.delegate()
    audit_id = case.audit(case.auditor).json()["id"]
    assert case.auditor.get(f"/audits/{audit_id}").status_code == 200
    if end == "withdrawn":
        case.withdraw(delegation)
        case.withdraw(delegation)
    else:
        with session_factory.begin() as session:
            session.get_one(Delegation, delegation).expires_at = datetime.now(UTC)
    for path in (
        f"/audits/{audit_id}",
        f"/datasets/{case.shown}",
        f"/datasets/{case.shown}/samples",
        f"/requests/{case.request}",
    ):
        problem_of(case.auditor.get(path), 404, "not-found")
    problem_of(case.audit(case.auditor), 404, "not-found")
    assert case.owner.get(f"/audits/{audit_id}").status_code == 200


def test_an_audit_of_two_delegations_needs_both(case: Case) -> None:
    delegation = case.delegate(case.hidden)
    case.delegate(case.shown)
    audit_id = case.audit(case.auditor).json()["id"]
    case.withdraw(delegation)
    problem_of(case.auditor.get(f"/audits/{audit_id}"), 404, "not-found")


def test_a_delegation_made_twice_with_one_key_is_one(case: Case) -> None:
    body = {
        "auditor_id": case.auditor.id,
        "dataset_ids": [case.shown],
        "expires_at": days_from_now(3),
    }
    answers = [
        case.owner.post("/delegations", body, headers={"Idempotency-Key": f"k-{case.request}"})
        for _ in range(2)
    ]
    assert [each.status_code for each in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    ("change", "status", "slug"),
    [
        ({"expires_at": days_from_now(400)}, 422, "invalid"),
        ({"expires_at": days_from_now(-1)}, 422, "invalid"),
        ({"expires_at": "2026-12-31T12:00:00"}, 422, "invalid"),
        ({"expires_at": None}, 422, "invalid"),
        ({"dataset_ids": []}, 422, "invalid"),
        ({"dataset_ids": [f"dst_{'0' * 32}"]}, 404, "not-found"),
        ({"auditor_id": f"pty_{'0' * 32}"}, 404, "not-found"),
    ],
)
def test_what_is_no_delegation_is_refused(
    case: Case, change: dict[str, Any], status: int, slug: str
) -> None:
    body = {
        "auditor_id": case.auditor.id,
        "dataset_ids": [case.shown],
        "expires_at": days_from_now(1),
    }
    problem_of(case.owner.post("/delegations", body | change), status, slug)


def test_nobody_delegates_what_is_anothers(case: Case, other_owner: User) -> None:
    body = {
        "auditor_id": case.auditor.id,
        "dataset_ids": [case.shown],
        "expires_at": days_from_now(1),
    }
    problem_of(other_owner.post("/delegations", body), 404, "not-found")
    delegation = case.delegate()
    answer = other_owner.http.delete(f"/delegations/{delegation}")
    problem_of(answer, 404, "not-found")
    assert delegation not in ids(other_owner, "/delegations")


class TestTheLog:
    """Its rows are shown whole: an auditor reads those that name nothing but what is delegated."""

    def test_of_a_request_that_is_delegated_in_part_no_row_is_read(self, case: Case) -> None:
        case.delegate()
        assert case.audit(case.owner).status_code == 202
        read = log_of(case.auditor)
        assert case.hidden not in read
        assert case.request not in read
        assert log_of(case.auditor, subject=case.request) == "[]"

    def test_of_one_that_is_delegated_whole_nothing_of_third_parties(
        self, case: Case, cast: Cast
    ) -> None:
        case.delegate(case.shown, case.hidden)
        other = cast.party(Role.AUDITOR)
        body = {"auditor_id": other.id, "dataset_ids": [case.shown, case.hidden]}
        delegated = case.owner.post("/delegations", body | {"expires_at": days_from_now(1)})
        assert delegated.status_code == 201
        assert case.audit(other).status_code == 202
        assert case.audit(case.auditor).status_code == 202
        rows = case.auditor.get("/log", params={"subject": case.request}).json()["items"]
        assert {row["event"] for row in rows} >= {"received", "completed", "queried"}
        assert {row["actor"] for row in rows} == {case.owner.id, case.auditor.id, "service"}
        assert other.id not in log_of(case.auditor)
        (seq,) = (row["seq"] for row in rows if row["event"] == "completed")
        assert case.auditor.get(f"/log/{seq}/proof").status_code in (200, 409), "sealed or not yet"

    def test_its_own_doings_it_reads_after_the_delegation_too(self, case: Case) -> None:
        delegation = case.delegate(case.shown, case.hidden)
        assert case.audit(case.auditor).status_code == 202
        case.withdraw(delegation)
        rows = case.auditor.get("/log", params={"subject": case.request}).json()["items"]
        assert {(row["actor"], row["event"]) for row in rows} == {(case.auditor.id, "queried")}


def log_of(user: User, **params: Any) -> str:
    answer = user.get("/log", params={"limit": 200} | params).json()
    assert answer["next_cursor"] is None
    return str(answer["items"])
