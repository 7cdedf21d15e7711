"""What people read of clocks, logs, lineage and estimates."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from expunge.client.durations import in_words
from expunge.client.resources import Ancestry, Estimate, Job, LogEntry, RemovalRequest, Residue
from expunge.client.telling import (
    clock,
    due,
    estimate_table,
    finished,
    lineage_table,
    log_table,
    residue_table,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EXPOSED = "exposed for 2 days so far; due in 28 days (2026-03-29)."
HEAD, OLDER, WITHHELD = (f"ckp_{letter * 32}" for letter in "abc")


def rendered(item: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(item)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def request(**members: Any) -> RemovalRequest:
    """A request of two days ago, to which these members are added."""
    made = NOW - timedelta(days=2)
    known = {
        "id": "req_1",
        "owner_id": "pty_1",
        "model_id": "mdl_1",
        "dataset_ids": ["dst_1"],
        "method": "fine_tune",
        "params": {},
        "state": "queued",
        "created_at": made,
        "updated_at": made,
        "deadline_at": made + timedelta(days=30),
        "overdue": False,
        "exposure_seconds": 2 * 86_400.0,
    }
    return RemovalRequest.model_validate(known | members)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (5940, "99 min"),
        (6000, "2 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 days"),
        (86_400 * 30, "30 days"),
    ],
)
def test_a_length_of_time_is_said_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("members", "sentence", "short"),
    [
        ({}, EXPOSED.capitalize(), "in 28 days"),
        (
            {"state": "completed"},
            f"Completed, but the old model still serves; {EXPOSED}",
            "in 28 days",
        ),
        (
            {"deadline_at": NOW - timedelta(days=3), "overdue": True},
            "Overdue by 3 days; exposed for 2 days so far.",
            "overdue",
        ),
        (
            {"state": "completed", "effective_at": NOW},
            "In force; the data was exposed for 2 days after the request.",
            "",
        ),
        (
            {"state": "rejected", "reason": "evidence", "exposure_seconds": None},
            "It ended without a result: evidence.",
            "",
        ),
    ],
)
def test_the_clock_says_what_is_waited_for(
    members: dict[str, Any], sentence: str, short: str
) -> None:
    assert clock(request(**members), NOW) == sentence
    assert due(request(**members), NOW) == short


def test_the_log_tells_who_did_what_and_why_in_order() -> None:
    crash = {"kind": "signal", "reason": "ended by SIGKILL", "words": "[last] words"}
    entries = [
        {"actor": "service", "event": "queued", "kind": "unlearn"},
        {"actor": "service", "event": "running", "attempt": 1, "worker": "train-1"},
        {"actor": "service", "event": "queued", "attempt": 1, "worker": "train-1", **crash},
        {"actor": "you", "event": "priority-set", "priority": 0},
    ]
    shown = rendered(
        log_table(
            LogEntry.model_validate({"position": number, "at": NOW, **each})
            for number, each in enumerate(entries, 1)
        ),
        width=140,
    )
    rows = [" ".join(line.split()) for line in shown.splitlines() if "2026-03-01" in line]
    assert rows == [
        "1 2026-03-01 12:00:00 service queued unlearn",
        "2 2026-03-01 12:00:00 train-1 running (attempt 1)",
        "3 2026-03-01 12:00:00 train-1 queued (attempt 1) ended by SIGKILL: [last] words",
        "4 2026-03-01 12:00:00 you priority-set 0",
    ]


def test_the_lineage_fits_a_narrow_terminal_and_says_why_not() -> None:
    drift = {
        "jobs": 1,
        "forgotten_samples": 10,
        "trained_samples": 100,
        "forgotten_share": 0.1,
        "utility_lost": 0.012,
        "alignment_drift": 0.0,
        "retrain_advised": True,
        "reasons": ["0.1 of the training samples were forgotten"],
    }
    shared = {"state": "ready", "made_at": NOW, "trained_datasets": 2, "forgotten_datasets": 1}
    rows = [
        {"id": OLDER, "promoted_at": NOW, "promotable": False, "reason": "It still holds dst_1."},
        {
            "id": WITHHELD,
            "promotable": True,
            "problem": {"code": "promotion-withheld", "detail": "the score is 0"},
        },
        {"id": HEAD, "promoted_at": NOW, "promotable": False, "reason": "It is the head."},
    ]
    shown = rendered(
        lineage_table(
            Ancestry.model_validate(
                {**shared, "drift": drift, "is_head": each["id"] == HEAD, **each}
            )
            for each in rows
        )
    )
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert f"{OLDER} 2026-03-01 was head 10.0% -0.012 no" in lines
    assert f"{WITHHELD} 2026-03-01 withheld 10.0% -0.012 yes" in lines
    assert f"{HEAD} 2026-03-01 head 10.0% -0.012" in lines
    assert "It still holds dst_1." in lines
    assert "It is the head." not in lines
    assert f"Checkpoint {WITHHELD}: the score is 0." in lines
    assert lines[-2:] == ["A retrain is advised:", "0.1 of the training samples were forgotten"]


def test_estimates_come_quickest_first_with_their_basis() -> None:
    known = {"params": {"epochs": 10}, "basis": "this model's jobs", "n_jobs": 3}
    found = [
        {
            "method": "retrain",
            "seconds": {"expected": 45_000, "low": 36_000, "high": 56_000},
            "waiting_seconds": 0,
            "cost": {"amount": 25, "currency": "EUR"},
        },
        {
            "method": "fine_tune",
            "seconds": {"expected": 670, "low": 540, "high": 840},
            "waiting_seconds": 3600,
        },
    ]
    shown = rendered(estimate_table(Estimate.model_validate(known | each) for each in found))
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    quick = lines.index("fine_tune 10 11 min 9 min to 14 min 60 min –")
    assert lines[quick + 1] == "retrain 10 12 h 10 h to 16 h 0 s 25 EUR"
    assert "From what this model's jobs (3 of them) took." in lines


def test_an_estimate_that_nothing_backs_says_so() -> None:
    nothing = {"method": "fine_tune", "params": {}, "basis": "none"}
    shown = rendered(estimate_table([Estimate.model_validate(nothing)]))
    assert "fine_tune" in shown
    assert "nobody knows how long one takes" in shown


def test_what_is_left_is_told_with_its_reason_and_its_end() -> None:
    found = [
        Residue(
            what="checkpoint", id=HEAD, where="object store", state="kept", why="audits", until=NOW
        ),
        Residue(
            what="checkpoint",
            count=3,
            where="object store",
            state="kept",
            why="audits",
            until=NOW,
            condition="work ends",
        ),
        Residue(what="outside", where="outside", state="unknown", why="[backups]"),
    ]
    told = " ".join(rendered(residue_table(found), width=100).split())
    assert f"checkpoint {HEAD}: kept object store 2026-03-01 audits" in told
    assert "checkpoint (3): kept object store 2026-03-01, work ends" in told
    assert "outside: unknown outside – [backups]" in told


def test_a_finished_job_is_told_in_two_lines() -> None:
    known = {"id": "job_1", "kind": "pretrain", "model_id": "mdl_1", "state": "succeeded"}
    known |= {"result_checkpoint_id": HEAD, "created_at": NOW}
    utility = {"before": None, "after": 0.4567, "n": 512, "chance": 1 / 512}
    metrics = {"seconds": 63.2, "images_per_second": 1234.5, "device": "cpu", "utility": utility}
    assert finished(Job.model_validate(known | {"metrics": metrics})) == [
        f"job_1: pretrain succeeded in 63 s, checkpoint {HEAD}",
        "contrastive accuracy 0.457 on 512 retained images; 1,234 images/s on cpu",
    ]
    score = {"forgetting_score": {"mean": 0.01234}}
    metrics["evaluation"] = {"encoder": {"unlearn": score, "retain": None}}
    metrics["utility"] = utility | {"before": 0.5}
    assert finished(Job.model_validate(known | {"metrics": metrics}))[1] == (
        "contrastive accuracy 0.500 to 0.457 on 512 retained images; "
        "forgetting score (encoder) +0.0123; 1,234 images/s on cpu"
    )
    bare = Job.model_validate(known | {"kind": "seal", "result_checkpoint_id": None})
    assert finished(bare) == ["job_1: seal succeeded"]
