"""Certificates over HTTP: who gets one, when, that it never changes, and that it proves what the registry holds."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError
from tests.api.conftest import Cast, Past, User, problem_of
from typer.testing import CliRunner

from expunge.client.cli import build_app
from expunge.evidence.certificate import Predicate, Statement
from expunge.evidence.signing import PublicKey, Signer, unverified
from expunge.evidence.verification import Given, verified
from expunge.registry import signing_keys
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import (
    Audit,
    AuditPurpose,
    Certificate,
    Checkpoint,
    Job,
    Request,
    Role,
)
from expunge.worker.sealer import Sealer

UNKNOWN = "req_" + "0" * 32
REPORT: dict[str, Any] = {
    "n_own": 3,
    "seed": 2**62,
    "verdict": {"code": "forgotten", "sentence": "Your samples were forgotten."},
    "test": {"p": 0.001, "alpha": 0.01},
    "levels": {"encoder": {"forgetting_score": {"mean": 0.02, "interval": [0.01, 0.03]}}},
}


@pytest.fixture(scope="module")
def settings(settings: Settings, signing_key: str) -> Settings:
    return settings.model_copy(update={"signing_key_file": signing_key})


@pytest.fixture(scope="module")
def seal(settings: Settings, session_factory: Sessions) -> Callable[[], None]:
    """Has the dispatcher's sealer come by."""
    sealer = Sealer(settings, session_factory)

    def run() -> None:
        while sealer.step():
            pass

    return run


@dataclass
class Scene:
    """A trained model with data of two owners, who both ask to be forgotten."""

    past: Past
    request: str
    dataset: str
    other_request: str

    @property
    def path(self) -> str:
        return f"/requests/{self.request}/certificate"

    def complete(self, **metrics: Any) -> str:
        """Carry both out; the result's id."""
        return self.past.unlearned(self.request, **metrics)


@pytest.fixture
def scene(past: Past, model_owner: User, data_owner: User, other_owner: User) -> Scene:
    own = past.sealed(model_owner)
    mine = past.granted(data_owner, model_owner)
    theirs = past.granted(other_owner, model_owner)
    model = model_owner.model(policy={"batch_window_seconds": 0})
    past.trained(model_owner, model, [own, mine, theirs])
    asked = [
        owner.post("/requests", {"model_id": model, "dataset_ids": [each]})
        for owner, each in ((data_owner, mine), (other_owner, theirs))
    ]
    first, second = (answer.json()["id"] for answer in asked)
    return Scene(past, first, mine, second)


@pytest.fixture
def done(scene: Scene, seal: Callable[[], None]) -> Scene:
    """With both requests completed and sealed."""
    scene.complete(utility={"before": 0.5, "after": 0.4, "n": 30, "chance": 1 / 30})
    seal()
    return scene


def told(data: bytes) -> Predicate:
    return Statement.model_validate_json(unverified(json.loads(data))).predicate


def broken(data: bytes, key: PublicKey) -> list[str]:
    return [link.name for link in verified(data, Given(key)) if link.status != "OK"]


def first_key(anonymous: httpx.Client) -> PublicKey:
    return PublicKey.from_pem(anonymous.get("/signing-keys").json()["items"][0]["public_key"])


def rows_of(sessions: Sessions, request_id: str) -> int:
    with sessions() as session:
        found = session.scalars(select(Certificate).where(Certificate.request_id == request_id))
        return len(found.all())


def test_a_certificate_proves_what_the_registry_holds(
    done: Scene, data_owner: User, anonymous: httpx.Client, session_factory: Sessions
) -> None:
    answer = data_owner.get(done.path)
    assert answer.status_code == 200
    assert answer.headers["content-location"] == f"{done.path}?edition=1"
    assert broken(answer.content, first_key(anonymous)) == []
    found = told(answer.content)
    with session_factory() as session:
        request = session.get_one(Request, done.request)
        assert request.job is not None
        base, result = (
            session.get_one(Checkpoint, each)
            for each in (request.job.base_checkpoint_id, request.job.result_checkpoint_id)
        )
    assert (found.request_id, found.owner_id) == (done.request, data_owner.id)
    assert [each.id for each in found.datasets] == [done.dataset]
    assert (found.method, found.params) == (request.method, request.params)
    assert (found.base.digest, found.result.digest) == (base.digest, result.digest)
    assert found.metrics.utility is not None
    assert found.metrics.utility.after == 0.4
    assert found.exposure.effective_at is not None
    assert {each.what for each in found.residue} >= {"checkpoint", "record", "outside"}
    assert found.audit is None
    assert found.run is None


def test_nothing_of_it_tells_of_who_else_shared_the_job(
    done: Scene, data_owner: User, other_owner: User
) -> None:
    payload = unverified(data_owner.get(done.path).json()).decode()
    assert done.other_request not in payload
    assert other_owner.id not in payload
    assert '"n"' not in payload
    assert "chance" not in payload


def test_it_stays_the_same_and_its_writing_is_logged(
    done: Scene, data_owner: User, model_owner: User
) -> None:
    first = data_owner.get(done.path).content
    assert data_owner.get(done.path).content == first
    assert data_owner.get(done.path, params={"edition": 1}).content == first
    assert model_owner.get(done.path).content == first, "the model's owner reads the same paper"
    events = [
        each["event"] for each in data_owner.get(f"/requests/{done.request}/log").json()["items"]
    ]
    assert events.count("certified") == 1
    problem_of(data_owner.get(done.path, params={"edition": 2}), 404, "not-found")


def test_nothing_is_certified_before_it_is_done_and_sealed(
    scene: Scene, data_owner: User, seal: Callable[[], None]
) -> None:
    seal()
    problem_of(data_owner.get(scene.path), 409, "conflict")
    scene.complete()
    waiting = data_owner.get(scene.path)
    problem_of(waiting, 409, "log-not-sealed")
    assert int(waiting.headers["retry-after"]) > 0
    seal()
    assert data_owner.get(scene.path).status_code == 200


def test_it_is_nobody_elses(
    done: Scene, cast: Cast, other_owner: User, other_model_owner: User, operator: User
) -> None:
    for stranger in (other_owner, other_model_owner, cast.party(Role.AUDITOR)):
        for call in (stranger.get, stranger.post):
            problem_of(call(done.path), 404, "not-found")
            problem_of(call(f"/requests/{UNKNOWN}/certificate"), 404, "not-found")
    problem_of(operator.get(done.path), 403, "forbidden")


def test_an_auditor_gets_it_when_all_its_data_are_delegated(
    done: Scene, cast: Cast, data_owner: User
) -> None:
    auditor = cast.party(Role.AUDITOR)
    body = {
        "auditor_id": auditor.id,
        "dataset_ids": [done.dataset],
        "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
    }
    answer = data_owner.post("/delegations", body)
    assert answer.status_code == 201, answer.text
    assert auditor.get(done.path).content == data_owner.get(done.path).content
    data_owner.http.delete(f"/delegations/{answer.json()['id']}")
    problem_of(auditor.get(done.path), 404, "not-found")


def test_asked_for_by_many_at_once_one_edition_is_written(
    done: Scene, data_owner: User, session_factory: Sessions
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: data_owner.get(done.path), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert rows_of(session_factory, done.request) == 1


def test_a_further_edition_is_written_when_something_has_changed(
    done: Scene, data_owner: User, anonymous: httpx.Client, session_factory: Sessions
) -> None:
    first = data_owner.get(done.path).content
    unchanged = {"Idempotency-Key": f"unchanged-{done.request}"}
    same = data_owner.post(done.path, headers=unchanged)
    assert (same.status_code, same.content) == (200, first)
    with session_factory.begin() as session:
        base = select(Job.base_checkpoint_id).join(Request, Request.job_id == Job.id)
        session.execute(
            update(Checkpoint)
            .where(Checkpoint.id.in_(base.where(Request.id == done.request)))
            .values(state="destroyed", destroyed_at=text("now()"))
        )
    changed = data_owner.post(done.path)
    assert changed.status_code == 201
    assert changed.headers["content-location"] == f"{done.path}?edition=2"
    assert broken(changed.content, first_key(anonymous)) == []
    before, after = told(first), told(changed.content)
    assert (before.edition, after.edition) == (1, 2)
    assert [each.what for each in before.residue].count("checkpoint") == 1
    assert [each.what for each in after.residue].count("checkpoint") == 0
    assert data_owner.get(done.path).content == changed.content
    assert data_owner.get(done.path, params={"edition": 1}).content == first
    again = data_owner.post(done.path, headers=unchanged)
    assert (again.status_code, again.content) == (200, first), "that call's answer, for good"


def test_the_same_call_for_a_further_edition_gives_the_same_one(
    done: Scene, data_owner: User, session_factory: Sessions
) -> None:
    key = {"Idempotency-Key": f"for {done.request}".replace(" ", "-")}
    first = data_owner.post(done.path, headers=key)
    assert first.status_code == 201
    again = data_owner.post(done.path, headers=key)
    assert (again.status_code, again.content) == (201, first.content)
    problem_of(data_owner.post(f"/requests/{UNKNOWN}/certificate", headers=key), 404, "not-found")
    assert rows_of(session_factory, done.request) == 1


def test_the_audit_that_it_relies_on_is_the_protocols_else_the_owners(
    done: Scene, data_owner: User, session_factory: Sessions
) -> None:
    for purpose, party in ((AuditPurpose.ASKED, data_owner.id), (AuditPurpose.PROTOCOL, None)):
        with session_factory.begin() as session:
            request = session.get_one(Request, done.request)
            assert request.job is not None
            row = session.scalar(
                select(Audit).where(Audit.request_id == request.id, Audit.purpose == purpose)
            ) or Audit(
                id=f"aud_{purpose}_{request.id}",
                request_id=request.id,
                owner_id=request.owner_id,
                job_id=request.job.id,
                purpose=purpose,
                before_checkpoint_id=request.job.base_checkpoint_id,
                after_checkpoint_id=request.job.result_checkpoint_id,
            )
            row.party_id, row.report = party, REPORT
            session.add(row)
        found = told(data_owner.post(done.path).content).audit
        assert found is not None
        assert (found.kind, found.verdict, found.p) == (purpose, "forgotten", 0.001)
        assert found.forgetting_score["encoder"].interval == [0.01, 0.03]


def test_what_is_written_cannot_be_changed(done: Scene, data_owner: User, past: Past) -> None:
    data_owner.get(done.path)
    for statement in ("UPDATE certificates SET edition = 7", "DELETE FROM certificates"):
        with past.sessions() as session, pytest.raises(DBAPIError, match="never changes"):
            session.execute(text(statement))


def test_a_request_that_changed_nothing_has_nothing_to_certify(
    scene: Scene, data_owner: User, session_factory: Sessions
) -> None:
    with session_factory.begin() as session:
        request = session.get_one(Request, scene.request)
        assert request.job is not None
        request.state, request.reason = "completed", "all of it was forgotten before"
    problem = problem_of(data_owner.get(scene.path), 409, "conflict")
    assert "Nothing had to be changed" in problem["detail"]
    with session_factory.begin() as session:
        session.get_one(Request, scene.request).state = "running"


def test_the_command_line_fetches_what_it_verifies(
    done: Scene, data_owner: User, url: str, tmp_path: Path
) -> None:
    paper, key, rows = (tmp_path / name for name in ("paper.json", "key.pem", "rows.json"))
    secret = data_owner.http.headers["authorization"].removeprefix("Bearer ")
    runner = CliRunner(env={"COLUMNS": "200", "EXPUNGE_URL": url, "EXPUNGE_KEY": secret})

    def run(*arguments: str) -> str:
        result = runner.invoke(build_app(), arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    refused = runner.invoke(build_app(), ["certificate", done.request, "--report", str(paper)])
    assert (refused.exit_code, paper.exists()) == (1, False)
    assert "relies on no audit" in refused.output
    written = ("--out", str(paper), "--rows", str(rows))
    assert str(paper) in run("certificate", done.request, "--renew", *written)
    assert paper.read_bytes() == data_owner.get(done.path).content
    assert run("certificate", done.request, "--edition", "1", "--json").encode() == (
        paper.read_bytes() + b"\n"
    )
    run("signing-keys", "--save", str(key))
    events = [row["event"] for row in json.loads(rows.read_text())]
    assert events == ["received", "approved", "queued", "running", "completed", "in-force"]
    checked = run("verify", str(paper), "--key", str(key), "--rows", str(rows), "--json")
    assert {link["status"] for link in json.loads(checked)["links"]} == {"OK"}


class TestRotation:
    """Runs last of its module: the key of the settings is retired by it."""

    @pytest.fixture
    def rotated(
        self, done: Scene, data_owner: User, settings: Settings, session_factory: Sessions
    ) -> Iterator[bytes]:
        """A certificate that was written before the key changed; the file holds the new key."""
        before = data_owner.get(done.path).content
        path = Path(settings.signing_key_file)
        old = Signer.load(path)
        kept = path.rename(path.with_name(f"{old.key_id}.pem"))
        new = Signer.create(path)
        with session_factory.begin() as session:
            signing_keys.rotate(session, old, new)
        yield before
        assert kept.exists()

    def test_old_certificates_stay_and_new_ones_follow_from_the_first_key(
        self,
        rotated: bytes,
        done: Scene,
        data_owner: User,
        anonymous: httpx.Client,
        seal: Callable[[], None],
    ) -> None:
        items = anonymous.get("/signing-keys").json()["items"]
        assert [item["retired_at"] is None for item in items] == [False, True]
        first, second = (PublicKey.from_pem(item["public_key"]) for item in items)
        assert data_owner.get(done.path).content == rotated
        assert broken(rotated, first) == []
        assert broken(rotated, second) == ["key"]
        seal()
        renewed = data_owner.post(done.path)
        assert renewed.status_code == 201, "another key signs it"
        assert broken(renewed.content, first) == []
        assert broken(renewed.content, second) == []

    def test_with_a_retired_key_or_none_nothing_is_signed(
        self, scene: Scene, data_owner: User, settings: Settings, seal: Callable[[], None]
    ) -> None:
        scene.complete()
        seal()
        path = Path(settings.signing_key_file)
        current = path.read_bytes()
        retired = next(each for each in path.parent.glob("*.pem") if each != path)
        path.write_bytes(retired.read_bytes())
        problem = problem_of(data_owner.get(scene.path), 503, "no-signing-key")
        assert "was retired" in problem["detail"]
        path.write_bytes(current)
        path.chmod(0o644)
        problem = problem_of(data_owner.get(scene.path), 503, "no-signing-key")
        assert str(path) not in problem["detail"]
        path.chmod(0o600)
        assert data_owner.get(scene.path).status_code == 200
