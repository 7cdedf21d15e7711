"""The checker finds what it looks for: a kept promise passes, and each way of breaking it is told."""

from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from tests.faults.promise import AT_REST, violations
from tests.faults.records import Records

from expunge.registry.fsck import lives

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OBJECTS = frozenset({"sha256/aa/first", "sha256/bb/second"})
Tables = dict[str, list[dict[str, Any]]]


def log(subject: str, *events: str | tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Log rows of one subject; `number` gives them their numbers."""
    told = [each if isinstance(each, tuple) else (each, {}) for each in events]
    return [{"subject_id": subject, "event": event, "detail": detail} for event, detail in told]


def attempt(number: int, worker: str = "train-1", **detail: Any) -> dict[str, Any]:
    return {"attempt": number, "worker": worker} | detail


def numbered(tables: Tables) -> Records:
    rows = [row | {"seq": seq} for seq, row in enumerate(tables["log"])]
    return Records(tables | {"log": rows}, OBJECTS, {("pty_1", "one"): "req_1"})


def kept() -> Tables:
    """A request that was carried out in the second attempt, and one that failed."""
    job = {"model_id": "mdl_1", "kind": "unlearn", "reason": None, "failure": None}
    job |= {"base_checkpoint_id": "ckp_1", "result_checkpoint_id": None, "lease_expires_at": None}
    request = {"model_id": "mdl_1", "reason": None, "effective_at": None}
    checkpoint = {"model_id": "mdl_1", "state": "ready", "problem": None}
    data = [("ckp_1", "dst_1"), ("ckp_1", "dst_2"), ("ckp_2", "dst_1"), ("ckp_2", "dst_2")]
    failure = {"reason": "no", "failure": {"kind": "signal"}}
    return {
        "clock": [{"now": NOW}],
        "models": [{"id": "mdl_1", "head_checkpoint_id": "ckp_2"}],
        "checkpoints": [
            {"id": "ckp_1", "parent_id": None, "job_id": None, "object_key": "sha256/aa/first"}
            | checkpoint,
            {"id": "ckp_2", "parent_id": "ckp_1", "job_id": "job_1"}
            | {"object_key": "sha256/bb/second"}
            | checkpoint,
        ],
        "checkpoint_datasets": [
            {"checkpoint_id": c, "dataset_id": d, "forgotten": (c, d) == ("ckp_2", "dst_1")}
            for c, d in data
        ],
        "requests": [
            request | {"id": "req_1", "job_id": "job_1", "state": "completed", "effective_at": NOW},
            request | {"id": "req_2", "job_id": "job_2", "state": "failed", "reason": "no"},
        ],
        "request_datasets": [
            {"request_id": "req_1", "dataset_id": "dst_1"},
            {"request_id": "req_2", "dataset_id": "dst_2"},
        ],
        "jobs": [
            job
            | {"id": "job_1", "state": "succeeded", "attempt": 2}
            | {"result_checkpoint_id": "ckp_2"},
            job | {"id": "job_2", "state": "failed", "attempt": 1} | failure,
        ],
        "idempotency_keys": [
            {"party_id": "pty_1", "key": "one", "resource_id": "req_1"},
            {"party_id": "pty_1", "key": "two", "resource_id": "req_2"},
        ],
        "pending_objects": [{"key": "sha256/cc/third", "lease_token": "gone"}],
        "datasets": [{"id": "dst_1", "state": "sealed"}],
        "log": [
            *log("req_1", "received", "approved", "queued"),
            *log("job_1", "queued", ("running", attempt(1, "train-0"))),
            *log("req_1", "running"),
            *log("job_1", ("queued", attempt(1, "train-0", reason="silent"))),
            *log("req_1", "queued"),
            *log("job_1", ("running", attempt(2)), ("evaluating", attempt(2))),
            *log("req_1", "running", "completed", "in-force"),
            *log("job_1", ("succeeded", attempt(2))),
            *log("mdl_1", ("promoted", {"checkpoint_id": "ckp_2"})),
            *log("req_2", "received", "approved", "queued"),
            *log("job_2", "queued", ("running", attempt(1)), ("failed", attempt(1))),
            *log("req_2", "running", "failed"),
        ],
    }


def found(records: Records) -> set[str]:
    """Names of the checks that are not passed."""
    leases = partial(lives.live_jobs_have_live_leases, tolerance_seconds=5)
    return {name for name, words in violations(records, [*AT_REST, leases]).items() if words}


def test_a_kept_promise_passes_every_check() -> None:
    assert violations(numbered(kept()), AT_REST) == {each.__name__: [] for each in AT_REST}


def test_a_removal_of_what_the_model_holds_no_more_has_no_result() -> None:
    tables = kept()
    forget_nothing(tables)
    change(tables, "jobs", "job_1", result_checkpoint_id=None)
    change(tables, "models", "mdl_1", head_checkpoint_id="ckp_1")
    note(tables, "mdl_1", ("promoted", {"checkpoint_id": "ckp_1"}))
    tables["checkpoints"].pop()
    records = Records(numbered(tables).tables, OBJECTS - {"sha256/bb/second"})
    assert found(records) == set()


def change(tables: Tables, table: str, row_id: str, **values: Any) -> None:
    next(row for row in tables[table] if row["id"] == row_id).update(values)


def note(tables: Tables, subject: str, *events: str | tuple[str, dict[str, Any]]) -> None:
    tables["log"] += log(subject, *events)


def lose_request(tables: Tables) -> None:
    tables["requests"] = [row for row in tables["requests"] if row["id"] != "req_1"]


def skip_a_state(tables: Tables) -> None:
    tables["log"] = [row for row in tables["log"] if row["event"] != "approved"]


def skip_an_attempt(tables: Tables) -> None:
    change(tables, "jobs", "job_1", attempt=3)


def let_a_zombie_write(tables: Tables) -> None:
    row = next(row for row in tables["log"] if row["event"] == "evaluating")
    row["detail"] = attempt(1, "train-0")


def run_two_at_once(tables: Tables) -> None:
    late = next(n for n, row in enumerate(tables["log"]) if row["event"] == "succeeded")
    rows = tables["log"]
    early = next(
        n for n, row in enumerate(rows) if (row["subject_id"], row["event"]) == ("job_2", "queued")
    )
    moved = [row for row in rows if row["subject_id"] == "job_2"]
    tables["log"] = [row for row in rows if row["subject_id"] != "job_2"]
    assert early > late
    tables["log"][late:late] = moved


def store_a_result_twice(tables: Tables) -> None:
    again = tables["checkpoints"][1] | {"id": "ckp_3", "problem": {"code": "promotion-withheld"}}
    tables["checkpoints"].append(again)
    rows = [r | {"checkpoint_id": "ckp_3"} for r in tables["checkpoint_datasets"][2:]]
    tables["checkpoint_datasets"] += rows


def ask_twice_with_one_key(tables: Tables) -> None:
    tables["idempotency_keys"].pop()


def roll_back(tables: Tables) -> None:
    change(tables, "models", "mdl_1", head_checkpoint_id="ckp_1")
    note(tables, "mdl_1", ("promoted", {"checkpoint_id": "ckp_1"}))


def forget_nothing(tables: Tables) -> None:
    """A result of a removal of data that the base had forgotten already."""
    for row in tables["checkpoint_datasets"]:
        row["forgotten"] |= row["dataset_id"] == "dst_1"


def forget_again(tables: Tables) -> None:
    change(tables, "requests", "req_2", state="completed", job_id="job_1", effective_at=NOW)
    tables["request_datasets"][1]["dataset_id"] = "dst_1"
    tables["log"] = [row for row in tables["log"] if row["subject_id"] != "req_2"]
    note(tables, "req_2", "received", "approved", "queued", "running", "completed")


def leave_running(tables: Tables) -> None:
    change(tables, "jobs", "job_2", state="running", failure=None)
    change(tables, "jobs", "job_2", lease_expires_at=NOW - timedelta(seconds=9))
    change(tables, "requests", "req_2", state="running")
    gone = ("failed",)
    tables["log"] = [row for row in tables["log"] if row["event"] not in gone]


BROKEN: dict[str, tuple[Callable[[Tables], None], set[str]]] = {
    "a request is lost": (lose_request, {"what_was_accepted_is_there", "a_job_has_one_result"}),
    "the log has a gap": (skip_a_state, {"every_life_is_a_legal_path"}),
    "an attempt is not counted": (skip_an_attempt, {"attempts_are_counted_and_never_overlap"}),
    "an attempt writes after it lost its lease": (
        let_a_zombie_write,
        {"attempts_are_counted_and_never_overlap"},
    ),
    "two jobs of a worker and of a model at once": (
        run_two_at_once,
        {"a_worker_runs_one_job_and_a_model_one_training"},
    ),
    "a job without a worker": (
        lambda tables: note(tables, "job_2", ("running", {"attempt": 2})),
        {"every_life_is_a_legal_path", "attempts_are_counted_and_never_overlap"},
    ),
    "no reason": (
        lambda tables: change(tables, "requests", "req_2", reason=None),
        {"ends_have_reasons"},
    ),
    "no kind of failure": (
        lambda tables: change(tables, "jobs", "job_2", failure=None),
        {"ends_have_reasons"},
    ),
    "two results": (store_a_result_twice, {"a_job_has_one_result"}),
    "two requests with one key": (ask_twice_with_one_key, {"a_key_makes_one_request"}),
    "a head that holds forgotten data": (roll_back, {"what_was_asked_is_forgotten"}),
    "a head that is not there": (
        lambda tables: change(tables, "models", "mdl_1", head_checkpoint_id="ckp_9"),
        {"heads_can_be_used"},
    ),
    "a result on another base": (
        lambda tables: change(tables, "jobs", "job_1", base_checkpoint_id="ckp_2"),
        {"lineage_is_a_chain", "a_job_has_one_result"},
    ),
    "a result although nothing was to be forgotten": (
        forget_nothing,
        {"a_job_has_one_result", "lineage_is_a_chain"},
    ),
    "forgotten twice": (forget_again, {"nothing_is_forgotten_twice"}),
    "a request that did not learn of its job's end": (
        lambda tables: change(tables, "requests", "req_1", state="running", effective_at=None),
        {"a_request_goes_with_its_job", "nothing_is_left_undone", "every_life_is_a_legal_path"},
    ),
    "a job that nobody takes back": (
        leave_running,
        {"nothing_is_left_undone", "live_jobs_have_live_leases"},
    ),
    "an object that nothing names": (
        lambda tables: change(tables, "checkpoints", "ckp_1", object_key="elsewhere"),
        {"objects_are_named"},
    ),
    "a note that is left": (
        lambda tables: tables["pending_objects"].append({"key": "x", "lease_token": None}),
        {"no_note_is_left"},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_found(name: str) -> None:
    break_it, expected = BROKEN[name]
    tables = deepcopy(kept())
    break_it(tables)
    assert found(numbered(tables)) == expected
