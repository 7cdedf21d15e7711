"""What operators see of workers and queues, and model owners of why a job waits."""

from datetime import UTC, datetime
from typing import Any

from tests.api.conftest import Past, User

from expunge.registry import fleet, jobs
from expunge.registry.tables import JobKind

TRAINING = [JobKind.PRETRAIN.value, JobKind.UNLEARN.value, JobKind.COMPARE.value]


def enter(past: Past, name: str, **other: Any) -> None:
    """A worker that was just heard of."""
    said: dict[str, Any] = {
        "role": "train",
        "kinds": TRAINING,
        "host": "here",
        "pid": 1,
        "version": "1",
        "device": "cuda:0",
        "device_name": "a card",
        "device_id": f"GPU of {name}",
        "memory_bytes": 2**36,
        "labels": ["cuda"],
        "started_at": datetime.now(UTC),
    }
    stopping = other.pop("stopping", False)
    with past.sessions.begin() as session:
        fleet.beat(session, fleet.Presence(name=name, **said | other), stopping=stopping)


def test_a_job_says_what_it_waits_for(past: Past, model_owner: User) -> None:
    data, model = past.sealed(model_owner), model_owner.model()
    changed = model_owner.http.patch(f"/models/{model}/policy", json={"worker_labels": ["b", "a"]})
    assert changed.json()["policy"]["worker_labels"] == ["a", "b"]
    body = {"dataset_ids": [data]}
    job = model_owner.post(f"/models/{model}/pretrain", body).json()
    assert job["waiting_for"] == "no live worker does jobs of the kind pretrain"
    enter(past, "first", labels=["a", "cuda"])
    lacking = "no live worker has the labels a, b"
    assert model_owner.get(f"/jobs/{job['id']}").json()["waiting_for"] == lacking
    assert model_owner.get("/jobs").json()["items"][0]["waiting_for"] == lacking
    enter(past, "second", labels=["a", "b"])
    assert model_owner.get(f"/jobs/{job['id']}").json()["waiting_for"] is None
    assert past.claimed(job["id"]).kind == JobKind.PRETRAIN
    enter(past, "second", labels=["a", "b"], stopping=True)
    assert model_owner.get(f"/jobs/{job['id']}").json()["waiting_for"] is None, "it runs"


def test_an_operator_sees_workers_with_their_jobs_and_what_nobody_can_do(
    past: Past, model_owner: User, operator: User
) -> None:
    data, model = past.sealed(model_owner), model_owner.model()
    started = model_owner.post(f"/models/{model}/pretrain", {"dataset_ids": [data]}).json()
    lease = past.claimed(started["id"])
    progress = {"phase": "pretrain", "step": 3, "steps": 4, "eta_seconds": 9.0}
    with past.sessions.begin() as session:
        jobs.heartbeat(session, lease, lease_seconds=60, progress=progress)
    other = model_owner.model()
    model_owner.http.patch(f"/models/{other}/policy", json={"worker_labels": ["no-such-thing"]})
    model_owner.post(f"/models/{other}/pretrain", {"dataset_ids": [data]})
    enter(past, "tester")
    for name in ("left", "right"):
        enter(past, name, device_id="the same")
    enter(past, "leaving", stopping=True)
    found = operator.get("/workers").json()
    workers = {each["name"]: each for each in found["workers"]}
    busy = workers["tester"]
    assert (busy["state"], busy["memory_bytes"]) == ("busy", 2**36)
    (job,) = (each for each in busy["jobs"] if each["id"] == started["id"])
    assert (job["kind"], job["share_done"], job["eta_seconds"]) == ("pretrain", 0.75, 9.0)
    assert (workers["left"]["state"], workers["leaving"]["state"]) == ("idle", "stopping")
    assert workers["left"]["shares_device_with"] == ["right"]
    queues = {each["kind"]: each for each in found["queues"]}
    assert queues["pretrain"]["waiting"] >= 1
    assert queues["pretrain"]["oldest_seconds"] >= 0
    reasons = {each["reason"]: each["jobs"] for each in found["unserved"]}
    assert reasons["no live worker has the label no-such-thing"] == 1
