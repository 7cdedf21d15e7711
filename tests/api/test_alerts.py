"""Alerts over HTTP: who reads them, who acknowledges them, and how a request shows them."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from sqlalchemy import select
from tests.api.conftest import Cast, Past, User, problem_of
from typer.testing import CliRunner

from expunge.client.cli import build_app
from expunge.client.sdk import Client
from expunge.evidence import protocol
from expunge.evidence.audit.outputs import Outputs, Side
from expunge.evidence.audit.relearning import relearning
from expunge.registry import reviews
from expunge.registry.tables import Audit, AuditPurpose, Job, Role

REPORT = {"verdict": {"code": "forgotten"}, "levels": {}}


def finding() -> dict[str, object]:
    """What the test says of samples that came back."""
    rng = np.random.default_rng(0)

    def group(n: int, rise: float) -> Outputs:
        before = rng.normal(0.6, 0.02, n)
        alike = np.ones((1, n, 1), np.float32)
        first, second = (Side(alike, each[:, None]) for each in (before, before + rise))
        return Outputs(first, second, np.arange(n))

    found = relearning({"encoder": group(12, 0.2)}, {"encoder": group(40, 0.0)})
    assert found is not None
    assert found.relearned
    return found.to_dict() | {"sentence": found.sentence}


@dataclass
class Scene:
    """Two owners' requests are completed; a later head knows the first owner's samples again."""

    past: Past
    model_owner: User
    owner: User
    other: User
    request: str
    others_request: str
    head: str


@pytest.fixture(scope="module")
def scene(past: Past, cast: Cast) -> Scene:
    model_owner = cast.party(Role.MODEL_OWNER)
    owner, other = cast.party(Role.DATA_OWNER), cast.party(Role.DATA_OWNER)
    own = past.sealed(model_owner)
    sets = [past.granted(each, model_owner) for each in (owner, other)]
    model = model_owner.model()
    past.trained(model_owner, model, [own, *sets])
    requests = []
    for each, dataset_id in zip((owner, other), sets, strict=True):
        answer = each.post("/requests", {"model_id": model, "dataset_ids": [dataset_id]})
        requests.append(str(answer.json()["id"]))
    past.unlearned(requests[0])
    head = past.trained(model_owner, model, [own])
    _review(past, head, requests[0])
    mine, others = requests
    return Scene(past, model_owner, owner, other, mine, others, head)


def _review(past: Past, head: str, request_id: str) -> None:
    """As a worker does it: the protocol's audits, then those under the new head with an alert."""
    with past.sessions() as session:
        waiting = select(Job.id).where(Job.kind == "review", Job.state == "queued")
        queued = session.scalars(waiting.order_by(Job.id)).all()
    for job_id in queued:
        lease = past.claimed(job_id)
        with past.sessions.begin() as session:
            for audit_id in reviews.begin(session, lease, newest=10) or []:
                audit = session.get_one(Audit, audit_id)
                returned = audit.after_checkpoint_id == head and audit.request_id == request_id
                reviews.settle(
                    session,
                    lease,
                    audit_id,
                    report=REPORT,
                    bundle_key=f"bundle of {audit_id}",
                    relearned=finding() if returned else None,
                )
            reviews.finish(session, lease, {})


def test_both_owners_read_the_same_alert_and_nobody_else(
    scene: Scene, other_model_owner: User
) -> None:
    (mine,) = scene.owner.get("/alerts").json()["items"]
    (theirs,) = scene.model_owner.get("/alerts").json()["items"]
    assert mine == theirs
    assert (mine["request_id"], mine["checkpoint_id"]) == (scene.request, scene.head)
    assert mine["p"] <= mine["alpha"] == 0.001
    assert mine["levels"]["encoder"]["rise"] == pytest.approx(0.2)
    assert "12 samples" in mine["sentence"]
    for stranger in (scene.other, other_model_owner):
        assert stranger.get("/alerts").json()["items"] == []


def test_a_request_shows_its_alerts_and_the_services_own_audit(scene: Scene) -> None:
    shown = scene.owner.get(f"/requests/{scene.request}").json()
    assert shown["alerts"] == 1
    audit = scene.owner.get(f"/audits/{shown['protocol_audit_id']}").json()
    assert (audit["purpose"], audit["state"]) == ("protocol", "succeeded")
    assert audit["views"] == protocol.VIEWS
    assert audit["finished_at"] is not None
    purposes = [each["purpose"] for each in scene.owner.get("/audits").json()["items"]]
    assert purposes == [AuditPurpose.LATER_HEAD, AuditPurpose.PROTOCOL]
    quiet = scene.other.get(f"/requests/{scene.others_request}").json()
    assert quiet["alerts"] == 0
    assert quiet["protocol_audit_id"] not in {None, shown["protocol_audit_id"]}


def test_the_models_owner_learns_of_the_alert_but_not_of_the_audit(scene: Scene) -> None:
    shown = scene.model_owner.get(f"/requests/{scene.request}").json()
    assert (shown["alerts"], shown["protocol_audit_id"]) == (1, None)


def test_the_services_audits_are_for_their_owner_only(scene: Scene, cast: Cast) -> None:
    audits = scene.owner.get("/audits").json()["items"]
    for stranger in (scene.other, scene.model_owner):
        for audit in audits:
            problem_of(stranger.get(f"/audits/{audit['id']}"), 404, "not-found")


def test_only_the_models_owner_acknowledges_and_both_see_it(
    scene: Scene, other_model_owner: User
) -> None:
    (alert,) = scene.owner.get("/alerts").json()["items"]
    path = f"/alerts/{alert['id']}/acknowledge"
    problem_of(scene.owner.post(path), 403, "forbidden")
    problem_of(other_model_owner.post(path), 404, "not-found")
    problem_of(other_model_owner.post(f"/alerts/alr_{'0' * 32}/acknowledge"), 404, "not-found")
    first = scene.model_owner.post(path).json()
    again = scene.model_owner.post(path).json()
    assert first["acknowledged_at"] is not None
    assert first == again == scene.owner.get("/alerts").json()["items"][0]


def test_the_sdk_lists_and_acknowledges(scene: Scene, url: str) -> None:
    secret = scene.model_owner.http.headers["Authorization"].removeprefix("Bearer ")
    with Client(url, secret) as client:
        (alert,) = client.alerts()
        assert alert.request_id == scene.request
        assert client.acknowledge_alert(alert.id).acknowledged_at is not None


def test_the_command_line_tells_what_came_back_and_takes_notice(scene: Scene, url: str) -> None:
    secret = scene.model_owner.http.headers["Authorization"].removeprefix("Bearer ")
    shell = CliRunner(env={"EXPUNGE_URL": url, "EXPUNGE_KEY": secret, "COLUMNS": "200"})
    told = shell.invoke(build_app(), ["alerts", "list"])
    assert told.exit_code == 0, told.output
    assert scene.request in told.output
    (alert,) = json.loads(shell.invoke(build_app(), ["alerts", "list", "--json"]).stdout)
    taken = shell.invoke(build_app(), ["alerts", "acknowledge", alert["id"], "--json"])
    assert json.loads(taken.stdout)["acknowledged_at"] is not None
