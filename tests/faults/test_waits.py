"""The wait beside a free worker is counted from when the job could have been taken by that worker."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.faults.records import Records
from tests.faults.waits import seconds_beside_a_free_worker


def at(seconds: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def job(name: str, due: float, claimed: float, worker: str, kind: str = "seal") -> dict[str, Any]:
    model = "mdl_1" if kind == "unlearn" else None
    times = {"due_at": at(due), "claimed_at": at(claimed)}
    return {"id": name, "kind": kind, "worker": worker, "model_id": model} | times


def life(name: str, claimed: float, ended: float, worker: str) -> list[dict[str, Any]]:
    return [
        {"subject_id": name, "event": "running", "at": at(claimed), "detail": {"worker": worker}},
        {"subject_id": name, "event": "succeeded", "at": at(ended), "detail": {}},
    ]


def test_nothing_is_said_of_a_workers_first_job() -> None:
    rows = {"jobs": [job("a", 0, 5, "w")], "log": life("a", 5, 6, "w")}
    assert seconds_beside_a_free_worker(Records(rows)) == []


def test_the_wait_begins_when_job_worker_and_model_are_free() -> None:
    jobs = [
        job("a", 0, 5, "w"),
        job("late", 8, 9, "w"),
        job("b", 0, 10, "v", "unlearn"),
        job("behind", 1, 15.5, "w", "unlearn"),
    ]
    log = [
        *life("a", 5, 6, "w"),
        *life("late", 9, 10, "w"),
        *life("b", 10, 14, "v"),
        *life("behind", 15.5, 20, "w"),
    ]
    found = seconds_beside_a_free_worker(Records({"jobs": jobs, "log": log}))
    assert found == [9 - 8, 15.5 - 14]
