"""Who may call what: every route demands a key, a role, and that the resource is the caller's."""

import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from tests.api.conftest import ENCODER, Cast, Past, User, problem_of

from expunge.api.app import create_app
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import ApiKey, Role

HEX = "0" * 32
OPERATOR, OWNERS, MODEL_OWNER = {"operator"}, {"data_owner", "model_owner"}, {"model_owner"}
AUDITORS = {*OWNERS, "auditor"}
EVERYBODY = {role.value for role in Role}
OPEN = {"show_health", "show_readiness", "list_methods", "list_signing_keys"}
ALLOWED = {
    "show_caller": EVERYBODY,
    "show_metrics": OPERATOR,
    "create_party": OPERATOR,
    "list_parties": OPERATOR,
    "create_key": OPERATOR,
    "list_keys": EVERYBODY,
    "rotate_key": EVERYBODY,
    "revoke_key": EVERYBODY,
    "show_fleet": OPERATOR,
    "create_dataset": OWNERS,
    "list_datasets": AUDITORS,
    "show_dataset": AUDITORS,
    "delete_dataset": OWNERS,
    "upload_shard": OWNERS,
    "announce_upload": OWNERS,
    "complete_upload": OWNERS,
    "seal_dataset": OWNERS,
    "list_samples": AUDITORS,
    "create_grant": OWNERS,
    "withdraw_grant": OWNERS,
    "create_model": MODEL_OWNER,
    "list_models": OWNERS,
    "show_model": OWNERS,
    "change_policy": MODEL_OWNER,
    "set_control": MODEL_OWNER,
    "start_pretraining": MODEL_OWNER,
    "upload_checkpoint": MODEL_OWNER,
    "announce_parts": MODEL_OWNER,
    "upload_part": MODEL_OWNER,
    "complete_checkpoint": MODEL_OWNER,
    "list_checkpoints": MODEL_OWNER,
    "show_checkpoint": MODEL_OWNER,
    "download_weights": MODEL_OWNER,
    "promote_checkpoint": MODEL_OWNER,
    "show_lineage": MODEL_OWNER,
    "create_request": OWNERS,
    "list_requests": AUDITORS,
    "show_request": AUDITORS,
    "follow_request": OWNERS,
    "approve_request": MODEL_OWNER,
    "reject_request": MODEL_OWNER,
    "cancel_request": OWNERS,
    "read_request_log": OWNERS,
    "show_residue": AUDITORS,
    "estimate_removal": OWNERS,
    "list_jobs": MODEL_OWNER,
    "show_job": MODEL_OWNER,
    "follow_job": MODEL_OWNER,
    "change_job": MODEL_OWNER,
    "cancel_job": MODEL_OWNER,
    "read_job_log": MODEL_OWNER,
    "create_audit": AUDITORS,
    "list_audits": AUDITORS,
    "show_audit": AUDITORS,
    "download_matrix": AUDITORS,
    "download_report": AUDITORS,
    "read_job_manifest": MODEL_OWNER,
    "renew_certificate": AUDITORS,
    "get_certificate": AUDITORS,
    "list_alerts": OWNERS,
    "acknowledge_alert": MODEL_OWNER,
    "create_delegation": OWNERS,
    "list_delegations": AUDITORS,
    "withdraw_delegation": OWNERS,
    "list_log_rows": EVERYBODY,
    "show_tree_head": EVERYBODY,
    "prove_consistency": EVERYBODY,
    "verify_log": EVERYBODY,
    "prove_log_row": EVERYBODY,
    "create_encoding": AUDITORS,
    "create_encoding_of_views": AUDITORS,
    "list_encodings": AUDITORS,
    "show_encoding": AUDITORS,
    "download_outputs": AUDITORS,
    "create_comparison": MODEL_OWNER,
    "list_comparisons": MODEL_OWNER,
    "show_comparison": MODEL_OWNER,
    "cancel_comparison": MODEL_OWNER,
    "download_table": MODEL_OWNER,
    "download_chart": MODEL_OWNER,
    "download_scores": MODEL_OWNER,
}
PREFIXES = {
    "party": "pty",
    "key": "key",
    "dataset": "dst",
    "model": "mdl",
    "checkpoint": "ckp",
    "request": "req",
    "job": "job",
    "audit": "aud",
    "comparison": "cmp",
    "delegation": "dlg",
    "encoding": "enc",
    "alert": "alr",
    "upload": "upl",
}
PLACES = {f"{{{kind}_id}}": f"{prefix}_{HEX}" for kind, prefix in PREFIXES.items()} | {
    "{name}": "a.tar",
    "{which}": "gap",
    "{seq}": "999999999",
    "{sha256}": "0" * 64,
    "{part_sha256}": "1" * 64,
    "table.{suffix}": "table.md",
    "{suffix}": "png",
}
PARTED = {"bytes": 1, "sha256": "0" * 64, "part_bytes": 2**20, "parts": ["0" * 64]}
BODIES: dict[str, dict[str, Any]] = {
    "announce_parts": PARTED,
    "complete_checkpoint": PARTED,
    "create_party": {"name": "x", "role": "auditor"},
    "create_key": {"scopes": ["keys"]},
    "create_dataset": {"name": "x"},
    "announce_upload": {"name": "a.tar", "bytes": 1, "sha256": "0" * 64},
    "create_grant": {"party_id": f"pty_{HEX}"},
    "create_model": {"name": "x", "encoder": ENCODER},
    "change_policy": {"promotion": "manual"},
    "set_control": {"dataset_id": f"dst_{HEX}"},
    "start_pretraining": {"dataset_ids": [f"dst_{HEX}"]},
    "create_request": {"model_id": f"mdl_{HEX}", "dataset_ids": [f"dst_{HEX}"]},
    "reject_request": {"reason": "no"},
    "change_job": {"priority": 1},
    "estimate_removal": {"model_id": f"mdl_{HEX}", "dataset_ids": [f"dst_{HEX}"]},
    "create_audit": {"request_id": f"req_{HEX}"},
    "create_delegation": {
        "auditor_id": f"pty_{HEX}",
        "dataset_ids": [f"dst_{HEX}"],
        "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
    },
    "create_encoding": {"request_id": f"req_{HEX}"},
    "create_comparison": {
        "model_id": f"mdl_{HEX}",
        "dataset_ids": [f"dst_{HEX}"],
        "methods": [{"method": "fine_tune"}],
    },
}
DIGEST = {"Content-Digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"}


def operations() -> dict[str, tuple[str, str]]:
    """Every operation of the description: id → method and path."""
    app = create_app(Settings(database_url="postgresql+psycopg:///none", object_store="file:///x"))
    return {
        operation["operationId"]: (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }


OPERATIONS = operations()
KEYED = sorted(OPERATIONS.keys() - OPEN)
WITH_ID = [name for name in KEYED if "_id}" in OPERATIONS[name][1]]


def call(http: httpx.Client, name: str, places: dict[str, str] | None = None) -> httpx.Response:
    method, path = OPERATIONS[name]
    for place, value in (PLACES | (places or {})).items():
        path = path.replace(place, value)
    return http.request(method, path, json=BODIES.get(name), headers=DIGEST)


def test_every_operation_says_whom_it_is_for() -> None:
    assert OPERATIONS.keys() == ALLOWED.keys() | OPEN


@pytest.mark.parametrize("name", sorted(OPEN))
def test_open_calls_need_no_key(anonymous: httpx.Client, name: str) -> None:
    assert call(anonymous, name).status_code == 200


@pytest.mark.parametrize("name", KEYED)
def test_without_a_key_nothing_is_answered(anonymous: httpx.Client, name: str) -> None:
    answer = call(anonymous, name)
    problem_of(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("key", ["", "Authorization: Bearer xpk_wrong\r\n"])
def test_nor_is_the_body_of_such_a_call_waited_for(url: str, name: str, key: str) -> None:
    method, path = OPERATIONS[name]
    for place, value in PLACES.items():
        path = path.replace(place, value)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: expunge\r\n{key}Content-Type: application/json\r\n"
        "Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
    )
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "header", ["Bearer xpk_wrong", "Bearer", "Basic YTpi", "xpk_wrong", "Bearer é"]
)
def test_a_wrong_key_is_refused(anonymous: httpx.Client, header: str) -> None:
    answer = anonymous.get("/me", headers={"Authorization": header.encode()})
    problem_of(answer, 401, "unauthenticated")


def test_a_revoked_key_is_refused(cast: Cast, operator: User) -> None:
    user = cast.party(Role.DATA_OWNER)
    key_id = user.get("/me").json()["key"]["id"]
    for _ in range(2):
        assert operator.http.delete(f"/keys/{key_id}").status_code == 204
    problem_of(user.get("/me"), 401, "unauthenticated")


def test_an_expired_key_is_refused(cast: Cast, session_factory: Sessions) -> None:
    user = cast.party(Role.DATA_OWNER)
    key_id = user.get("/me").json()["key"]["id"]
    with session_factory.begin() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(expires_at=past))
    problem_of(user.get("/me"), 401, "unauthenticated")


def test_a_new_key_works_and_its_secret_is_shown_once(operator: User, url: str) -> None:
    party = operator.post("/parties", {"name": "Ada", "role": "data_owner"}).json()
    issued = operator.post(f"/parties/{party['id']}/keys", {"expires_in_days": 3})
    assert issued.headers["cache-control"] == "no-store"
    key = issued.json()
    headers = {"Authorization": f"Bearer {key['secret']}"}
    me = httpx.get(f"{url}/me", headers=headers, trust_env=False).json()
    shown = {name: key[name] for name in ("id", "expires_at", "scopes")}
    storage = {"used_bytes": 0, "limit_bytes": 256 * 2**30}
    assert me == {"party": party, "key": shown, "storage": storage}
    assert "secret" not in me["key"]
    assert party in operator.get("/parties", params={"limit": 200}).json()["items"]
    problem_of(operator.post("/parties", {"name": "Ada", "role": "auditor"}), 409, "conflict")


@pytest.mark.parametrize("role", list(Role))
def test_calls_of_other_roles_are_refused(cast: Cast, role: Role) -> None:
    user = cast.party(role)
    for name in KEYED:
        answer = call(user.http, name)
        if role.value in ALLOWED[name]:
            assert answer.status_code != 403, name
        else:
            problem = problem_of(answer, 403, "forbidden")
            assert problem["allowed"] == sorted(ALLOWED[name]), name


class Estate:
    """One of everything, belonging to a model owner and a data owner."""

    def __init__(self, past: Past, data_owner: User, model_owner: User, auditor: User) -> None:
        self.own = past.sealed(model_owner)
        self.dataset = past.granted(data_owner, model_owner)
        self.model = model_owner.model()
        self.checkpoint = past.trained(model_owner, self.model, [self.own, self.dataset])
        request = data_owner.post(
            "/requests", {"model_id": self.model, "dataset_ids": [self.dataset]}
        )
        self.request = str(request.json()["id"])
        self.job = past.job_of(self.request)
        past.unlearned(self.request)
        self.audit = str(data_owner.post("/audit", {"request_id": self.request}).json()["id"])
        self.comparison = self._compared(past, model_owner)
        encoded = data_owner.post("/encode", {"request_id": self.request})
        self.encoding = str(encoded.json()["id"])
        delegated = BODIES["create_delegation"] | {
            "auditor_id": auditor.id,
            "dataset_ids": [self.dataset],
        }
        self.delegation = str(data_owner.post("/delegations", delegated).json()["id"])

    def _compared(self, past: Past, model_owner: User) -> str:
        more = [past.sealed(model_owner) for _ in range(2)]
        model = model_owner.model(control_dataset_id=past.sealed(model_owner))
        past.trained(model_owner, model, more)
        answer = model_owner.post(
            "/comparisons",
            {"model_id": model, "dataset_ids": more[:1], "methods": [{"method": "fine_tune"}]},
        )
        comparison_id = str(answer.json()["id"])
        past.compared(comparison_id)
        return comparison_id

    def places(self) -> dict[str, str]:
        own = PREFIXES.keys() & vars(self).keys()
        return {f"{{{kind}_id}}": getattr(self, kind) for kind in own}


@pytest.fixture(scope="module")
def estate(past: Past, data_owner: User, model_owner: User, cast: Cast) -> Estate:
    return Estate(past, data_owner, model_owner, cast.party(Role.AUDITOR))


def outsiders(name: str) -> list[Role]:
    roles = (Role.DATA_OWNER, Role.MODEL_OWNER, Role.AUDITOR)
    return [role for role in roles if role.value in ALLOWED[name]]


@pytest.mark.parametrize("name", [name for name in WITH_ID if outsiders(name) != []])
def test_what_belongs_to_another_party_is_not_found(cast: Cast, estate: Estate, name: str) -> None:
    if ALLOWED[name] == OPERATOR:
        return
    for role in outsiders(name):
        answer = call(cast.party(role).http, name, estate.places())
        problem_of(answer, 404, "not-found")


@pytest.mark.parametrize(
    "name", ["show_dataset", "show_model", "show_request", "show_audit", "read_request_log"]
)
def test_the_owner_finds_it(data_owner: User, estate: Estate, name: str) -> None:
    assert call(data_owner.http, name, estate.places()).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "show_checkpoint",
        "show_job",
        "read_job_log",
        "read_request_log",
        "list_checkpoints",
        "show_lineage",
        "show_request",
        "show_comparison",
        "download_table",
        "download_chart",
        "download_scores",
    ],
)
def test_the_model_owner_finds_it(model_owner: User, estate: Estate, name: str) -> None:
    assert call(model_owner.http, name, estate.places()).status_code == 200


@pytest.mark.parametrize(
    "name", ["upload_shard", "seal_dataset", "list_samples", "create_grant", "withdraw_grant"]
)
def test_a_grant_shows_metadata_and_nothing_else(
    model_owner: User, estate: Estate, name: str
) -> None:
    seen = call(model_owner.http, "show_dataset", estate.places())
    assert seen.json()["granted_to"] is None
    problem_of(call(model_owner.http, name, estate.places()), 404, "not-found")


def test_a_request_is_withdrawn_by_its_owner_only(model_owner: User, estate: Estate) -> None:
    problem_of(call(model_owner.http, "cancel_request", estate.places()), 404, "not-found")


@pytest.mark.parametrize("name", ["show_audit", "download_matrix"])
def test_an_audit_is_for_its_owner_only(model_owner: User, estate: Estate, name: str) -> None:
    problem_of(call(model_owner.http, name, estate.places()), 404, "not-found")


def test_a_data_owner_sees_the_model_in_short(data_owner: User, estate: Estate) -> None:
    model = call(data_owner.http, "show_model", estate.places()).json()
    assert model.keys() == {"id", "owner_id", "name", "framework", "created_at"}
    assert [each["id"] for each in data_owner.get("/models").json()["items"]] == [estate.model]


@pytest.mark.parametrize(
    "bad", ["x", "dst_0", f"dst_{HEX}0", "mdl_" + HEX, "%00", "dst_" + "G" * 32, "' OR 1=1"]
)
def test_an_id_that_is_none_is_not_found(data_owner: User, bad: str) -> None:
    problem_of(data_owner.get(f"/datasets/{bad}"), 404, "not-found")


def test_an_unknown_address_and_a_wrong_method_are_problems(data_owner: User) -> None:
    problem_of(data_owner.get("/nowhere"), 404, "not-found")
    answer = data_owner.http.delete("/datasets")
    problem_of(answer, 405, "method-not-allowed")
    assert answer.headers["allow"]
