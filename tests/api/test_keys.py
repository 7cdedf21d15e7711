"""Keys: what they are for, how they are replaced, listed and used; never a secret twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from tests.api.conftest import Cast, User, problem_of
from tests.api.test_access import ALLOWED, KEYED, OPERATIONS, call

from expunge.api.scopes import ABOUT_KEYS, AUDITING, READING, needed
from expunge.registry import parties
from expunge.registry.database import Sessions
from expunge.registry.errors import Conflict
from expunge.registry.tables import ApiKey, Role, Scope

ALL = [scope.value for scope in Scope]


@pytest.fixture
def owner(cast: Cast) -> User:
    return cast.party(Role.DATA_OWNER)


def key_of(user: User) -> dict[str, Any]:
    key: dict[str, Any] = user.get("/me").json()["key"]
    return key


def with_secret(url: str, issued: dict[str, Any]) -> httpx.Client:
    """A connection with another key."""
    headers = {"Authorization": f"Bearer {issued['secret']}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60)


@pytest.fixture
def issue(operator: User, url: str) -> Iterator[Any]:
    """Issues a key for a user and opens a connection with it."""
    opened = []

    def issue(user: User, **body: Any) -> httpx.Client:
        answer = operator.post(f"/parties/{user.id}/keys", body)
        assert answer.status_code == 201, answer.text
        opened.append(with_secret(url, answer.json()))
        return opened[-1]

    yield issue
    for http in opened:
        http.close()


class TestScopes:
    """A key may do less than its party."""

    def test_every_name_that_has_a_scope_of_its_own_is_an_operation(self) -> None:
        assert OPERATIONS.keys() >= ABOUT_KEYS | AUDITING | READING

    @pytest.mark.parametrize("scope", ALL)
    def test_calls_outside_a_keys_scope_are_refused_and_all_others_are_not(
        self, cast: Cast, issue: Any, scope: str
    ) -> None:
        callers = {role.value: issue(cast.party(role), scopes=[scope]) for role in Role}
        for name in KEYED:
            answer = call(callers[min(ALLOWED[name])], name)
            wanted = needed(OPERATIONS[name][0], name)
            if wanted == scope:
                assert answer.status_code != 403, name
            else:
                problem = problem_of(answer, 403, "scope-missing")
                assert (problem["needed"], problem["scopes"]) == (wanted, [scope]), name

    def test_a_key_has_all_of_them_unless_it_is_held_to_some(self, owner: User, issue: Any) -> None:
        assert key_of(owner)["scopes"] == ALL
        http = issue(owner, scopes=["write", "read", "read"])
        assert http.get("/me").json()["key"]["scopes"] == ["read", "write"]

    @pytest.mark.parametrize("scopes", [[], ["all"], "read", ["read"] * 5])
    def test_what_is_no_scope_is_refused(self, operator: User, owner: User, scopes: Any) -> None:
        answer = operator.post(f"/parties/{owner.id}/keys", {"scopes": scopes})
        problem_of(answer, 422, "invalid")

    def test_the_same_call_with_other_scopes_is_another_call(
        self, operator: User, owner: User
    ) -> None:
        headers = {"Idempotency-Key": f"scopes-{owner.id}"}
        path = f"/parties/{owner.id}/keys"
        assert operator.post(path, {"scopes": ["read"]}, headers=headers).status_code == 201
        again = operator.post(path, {"scopes": ["read"]}, headers=headers)
        assert again.json()["secret"] is None
        problem_of(operator.post(path, {}, headers=headers), 422, "idempotency-key-reused")


class TestHandingOut:
    """Nobody hands out more than they hold."""

    @pytest.mark.parametrize("role", [Role.OPERATOR, Role.DATA_OWNER])
    @pytest.mark.parametrize("body", [{}, {"scopes": None}, {"scopes": ["keys", "write"]}])
    def test_a_key_for_keys_makes_none_that_may_do_more(
        self, cast: Cast, operator: User, issue: Any, role: Role, body: dict[str, Any]
    ) -> None:
        to = cast.party(role)
        with issue(operator, scopes=["keys", "read"]) as held:
            refused = held.post(f"/parties/{to.id}/keys", json=body)
            problem = problem_of(refused, 403, "scopes-exceeded")
            assert problem["scopes"] == ["keys", "read"]
            assert "xpk_" not in refused.text
            made = held.post(f"/parties/{to.id}/keys", json={"scopes": ["read"]})
            assert made.json()["scopes"] == ["read"]

    def test_nor_in_steps(self, operator: User, issue: Any, url: str) -> None:
        with issue(operator, scopes=["keys"]) as held:
            created = held.post("/parties", json={"name": "Eve", "role": "operator"}).json()
            made = held.post(f"/parties/{created['id']}/keys", json={"scopes": ["keys"]}).json()
        with with_secret(url, made) as http:
            path = f"/parties/{operator.id}/keys"
            problem_of(http.post(path), 403, "scopes-exceeded")
            mine = http.post(f"/keys/{made['id']}/rotate").json()
            assert mine["scopes"] == ["keys"]

    def test_the_log_names_the_key_that_made_a_key(self, operator: User, owner: User) -> None:
        made = operator.post(f"/parties/{owner.id}/keys").json()["id"]
        rows = owner.get("/log", params={"limit": 200}).json()["items"]
        (row,) = (each for each in rows if each["subject_id"] == made)
        assert row["detail"]["issued_with"] == key_of(operator)["id"]


class TestRotation:
    """A new secret before the old one ends."""

    def test_both_secrets_work_until_the_overlap_ends(
        self, owner: User, url: str, session_factory: Sessions
    ) -> None:
        old = key_of(owner)
        answer = owner.post(f"/keys/{old['id']}/rotate", {"overlap_hours": 2})
        assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
        with with_secret(url, answer.json()) as http:
            assert http.get("/me").status_code == 200
            ends = datetime.fromisoformat(key_of(owner)["expires_at"])
            assert timedelta(hours=1) < ends - datetime.now(UTC) < timedelta(hours=3)
            with session_factory.begin() as session:
                over = datetime.now(UTC) - timedelta(seconds=1)
                session.execute(
                    update(ApiKey).where(ApiKey.id == old["id"]).values(expires_at=over)
                )
            problem_of(owner.get("/me"), 401, "unauthenticated")
            assert http.get("/me").status_code == 200

    def test_without_overlap_the_old_secret_ends_at_once(self, owner: User, url: str) -> None:
        answer = owner.post(f"/keys/{key_of(owner)['id']}/rotate", {"overlap_hours": 0})
        problem_of(owner.get("/me"), 401, "unauthenticated")
        with with_secret(url, answer.json()) as http:
            assert http.get("/me").status_code == 200

    def test_scopes_and_length_of_life_stay(self, owner: User, issue: Any, url: str) -> None:
        with issue(owner, scopes=["keys"], expires_in_days=7) as http:
            (first, *_) = http.get("/keys").json()["items"]
            new = http.post(f"/keys/{first['id']}/rotate").json()
        assert new["scopes"] == ["keys"]
        created, ends = (datetime.fromisoformat(new[name]) for name in ("created_at", "expires_at"))
        assert timedelta(days=6) < ends - created <= timedelta(days=7, minutes=1)
        with with_secret(url, new) as http:
            problem_of(http.get("/me"), 403, "scope-missing")

    def test_a_key_is_not_rotated_by_one_that_may_do_less(
        self, owner: User, issue: Any, url: str
    ) -> None:
        full = key_of(owner)["id"]
        issue(owner, scopes=["read"])
        with issue(owner, scopes=["keys", "read"]) as http:
            mine, reading, _ = (each["id"] for each in http.get("/keys").json()["items"])
            refused = http.post(f"/keys/{full}/rotate")
            problem = problem_of(refused, 403, "scopes-exceeded")
            assert problem["scopes"] == ["keys", "read"]
            assert "xpk_" not in refused.text
            assert http.post(f"/keys/{reading}/rotate").json()["scopes"] == ["read"]
            assert http.post(f"/keys/{mine}/rotate").status_code == 201
        assert owner.post(f"/keys/{full}/rotate").status_code == 201

    def test_a_key_is_rotated_once_and_a_repeated_call_shows_no_secret(self, owner: User) -> None:
        path = f"/keys/{key_of(owner)['id']}/rotate"
        headers = {"Idempotency-Key": f"rotate-{owner.id}"}
        first, again = (owner.post(path, headers=headers).json() for _ in range(2))
        assert first["secret"].startswith("xpk_")
        assert again == first | {"secret": None}
        assert problem_of(owner.post(path), 409, "conflict")["replaced_by"] == first["id"]

    def test_a_key_does_not_become_many(
        self, owner: User, url: str, session_factory: Sessions
    ) -> None:
        """Each would have a minute's calls of its own."""
        first = owner.post(f"/keys/{key_of(owner)['id']}/rotate").json()
        with with_secret(url, first) as http:
            refused = http.post(f"/keys/{first['id']}/rotate", json={"overlap_hours": 1})
            assert problem_of(refused, 409, "conflict")["allowed"] == 1
            # One that leaked is replaced nevertheless.
            second = http.post(f"/keys/{first['id']}/rotate", json={"overlap_hours": 0}).json()
        with with_secret(url, second) as http:
            again = http.post(f"/keys/{second['id']}/rotate", json={"overlap_hours": 1})
            problem_of(again, 409, "conflict")
            assert http.delete(f"/keys/{key_of(owner)['id']}").status_code == 204
            third = http.post(f"/keys/{second['id']}/rotate", json={"overlap_hours": 1})
            assert third.status_code == 201

    def test_nor_by_rotating_at_once(
        self, owner: User, operator: User, session_factory: Sessions
    ) -> None:
        def rotate(key_id: str) -> bool:
            with session_factory() as session:
                used = session.get_one(ApiKey, key_id)
                try:
                    parties.rotate_key(session, used, key_id, overlap=timedelta(hours=1))
                except Conflict:
                    return False
                session.commit()
            return True

        old = [operator.post(f"/parties/{owner.id}/keys").json()["id"] for _ in range(3)]
        assert all(map(rotate, old))
        listed = owner.get("/keys", params={"limit": 200}).json()["items"]
        new = [each["id"] for each in listed if each["replaces"]]
        mine = key_of(owner)["id"]
        # Four of seven are current: one more may overlap.
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(rotate, [mine, *new])) == 1

    def test_nobody_rotates_anothers_key_and_nobody_one_that_has_ended(
        self, owner: User, operator: User, other_owner: User
    ) -> None:
        path = f"/keys/{key_of(owner)['id']}/rotate"
        for user in (other_owner, operator):
            problem_of(user.post(path), 404, "not-found")
        mine = operator.post(f"/parties/{owner.id}/keys").json()["id"]
        assert owner.http.delete(f"/keys/{mine}").status_code == 204
        problem_of(owner.post(f"/keys/{mine}/rotate"), 409, "conflict")

    @pytest.mark.parametrize("hours", [-1, 721, 1.5, "1", None])
    def test_what_is_no_overlap_is_refused(self, owner: User, hours: Any) -> None:
        answer = owner.post(f"/keys/{key_of(owner)['id']}/rotate", {"overlap_hours": hours})
        problem_of(answer, 422, "invalid")

    def test_it_is_in_the_log_of_both_keys(self, owner: User) -> None:
        old = key_of(owner)["id"]
        new = owner.post(f"/keys/{old}/rotate").json()["id"]
        rows = owner.get("/log", params={"limit": 200}).json()["items"]
        told = [(row["subject_id"], row["event"]) for row in rows]
        assert (old, "rotated") in told
        assert (new, "created") in told


class TestList:
    """Own keys for everybody, all keys for operators; no secrets."""

    def test_own_keys_are_listed_with_what_became_of_them(self, owner: User) -> None:
        old = key_of(owner)["id"]
        new = owner.post(f"/keys/{old}/rotate").json()["id"]
        owner.http.delete(f"/keys/{new}")
        answer = owner.get("/keys")
        newest, oldest = answer.json()["items"]
        assert (newest["id"], newest["replaces"], oldest["id"]) == (new, old, old)
        assert newest["revoked_at"]
        assert newest["last_used_at"] is None
        assert "xpk_" not in answer.text
        assert "secret" not in answer.text

    def test_an_operator_lists_everybodys_and_others_only_their_own(
        self, owner: User, operator: User, other_owner: User
    ) -> None:
        asked = {"party_id": owner.id}
        (listed,) = operator.get("/keys", params=asked).json()["items"]
        assert listed["id"] == key_of(owner)["id"]
        assert other_owner.get("/keys", params=asked).json()["items"] == []
        assert {each["party_id"] for each in other_owner.get("/keys").json()["items"]} == {
            other_owner.id
        }

    def test_when_a_key_was_used_last_is_known_to_the_minute(
        self, owner: User, session_factory: Sessions
    ) -> None:
        key = key_of(owner)["id"]
        (listed,) = owner.get("/keys").json()["items"]
        first = listed["last_used_at"]
        assert first is not None
        (listed,) = owner.get("/keys").json()["items"]
        assert listed["last_used_at"] == first, "one write a minute"
        with session_factory.begin() as session:
            earlier = datetime.now(UTC) - timedelta(minutes=2)
            session.execute(update(ApiKey).where(ApiKey.id == key).values(last_used_at=earlier))
        (listed,) = owner.get("/keys").json()["items"]
        assert datetime.fromisoformat(listed["last_used_at"]) > earlier


def test_a_party_revokes_its_own_key_and_nobody_elses(owner: User, other_owner: User) -> None:
    key = key_of(owner)["id"]
    problem_of(other_owner.http.delete(f"/keys/{key}"), 404, "not-found")
    assert owner.http.delete(f"/keys/{key}").status_code == 204
    problem_of(owner.get("/me"), 401, "unauthenticated")
