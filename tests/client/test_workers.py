"""What an operator reads of workers and queues."""

import io
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from expunge.client.commands.workers import drawn
from expunge.client.fleet import Fleet

WIDTH = 120


def worker(name: str, **members: Any) -> dict[str, Any]:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    known = {
        "name": name,
        "role": "train",
        "state": "idle",
        "kinds": ["unlearn"],
        "labels": ["cpu"],
        "device": "cpu",
        "device_name": None,
        "memory_bytes": None,
        "shares_device_with": [],
        "jobs": [],
        "host": "here",
        "pid": 1,
        "version": "1",
        "started_at": now,
        "last_seen_at": now,
        "silent_seconds": 4.2,
    }
    return known | members


def shown(workers: list[dict[str, Any]], unserved: list[dict[str, Any]]) -> str:
    queues = [
        {"kind": "unlearn", "waiting": 3, "later": 1, "running": 1, "oldest_seconds": 7200.0},
        {"kind": "audit", "waiting": 0, "later": 0, "running": 0, "oldest_seconds": None},
    ]
    fleet = Fleet.model_validate({"workers": workers, "queues": queues, "unserved": unserved})
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(drawn(fleet))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_workers_are_shown_with_device_labels_and_job() -> None:
    job = {
        "id": "job_1",
        "kind": "unlearn",
        "attempt": 1,
        "seconds": 60.0,
        "share_done": 0.42,
        "eta_seconds": 90.0,
    }
    gpu = {"device": "cuda:1", "device_name": "A100 [40]", "memory_bytes": 40 * 2**30}
    told = shown([worker("a", state="busy", labels=["a100", "cuda"], jobs=[job], **gpu)], [])
    for words in ("busy", "cuda:1, 40 GiB", "A100 [40]", "a100, cuda", "unlearn 42%, 90 s left"):
        assert words in told
    assert "job_1" in told
    assert "4 s ago" in told


def test_queues_are_shown_with_their_oldest_job() -> None:
    lines = map(str.strip, shown([worker("a")], []).splitlines())
    (line,) = (each for each in lines if each.startswith("unlearn"))
    assert line.split() == ["unlearn", "3", "2", "h", "1", "1"]


def test_what_an_operator_should_look_at_stands_below() -> None:
    lacking = {"reason": "no live worker has the label a100", "jobs": 2}
    told = shown([worker("a", device="cuda:0", shares_device_with=["b"])], [lacking])
    assert "2 jobs wait: no live worker has the label a100" in told
    assert "a shares cuda:0 with b" in told
    assert "1 job waits: none" in shown([worker("a")], [{"reason": "none", "jobs": 1}])


def test_a_service_without_workers_says_so() -> None:
    assert "no worker is there" in shown([], [])
