"""Rules about what the log tells: every life is a legal path, every attempt has one executor, nothing is skipped."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from expunge.registry import lifecycles
from expunge.registry.fsck.records import Records, Row

LIVE = ("running", "evaluating")
TRAINING = ("pretrain", "unlearn")
LIVES: Mapping[str, tuple[Mapping[str, frozenset[str]], str]] = {
    "jobs": (lifecycles.JOB, "queued"),
    "requests": (lifecycles.REQUEST, "received"),
}
"""What may follow what, and how a life begins."""


def states_of(records: Records, table: str, row_id: str) -> list[Row]:
    """The log rows that tell of a change of state, oldest first."""
    life, _ = LIVES[table]
    return [row for row in records.history(row_id) if row["event"] in life]


def every_life_is_a_legal_path(records: Records) -> Iterator[str]:
    """From its beginning to the row's present state, without a gap, each job and request."""
    for table, (life, beginning) in LIVES.items():
        for row in records[table]:
            path = [each["event"] for each in states_of(records, table, row["id"])]
            told = f"{row['id']} went {' > '.join(path)}"
            if path[:1] != [beginning]:
                yield f"{told}: it does not begin as {beginning}"
            for before, after in pairwise(path):
                if after not in life[before]:
                    yield f"{told}: {after} may not follow {before}"
            if path and path[-1] != row["state"]:
                yield f"{told}: its row says {row['state']}"


def attempts_are_counted_and_never_overlap(records: Records) -> Iterator[str]:
    """Each start has a worker and the next number; what ends it names the same number."""
    for job in records["jobs"]:
        starts = [r for r in states_of(records, "jobs", job["id"]) if r["event"] == "running"]
        numbers = [row["detail"].get("attempt") for row in starts]
        if numbers != list(range(1, job["attempt"] + 1)):
            yield f"{job['id']} counts {job['attempt']} attempts; its log has {numbers}"
        for row in starts:
            if not row["detail"].get("worker"):
                yield f"{job['id']} runs without a worker in its log"
        current = None
        for row in states_of(records, "jobs", job["id"]):
            current = row["detail"]["attempt"] if row["event"] == "running" else current
            told = row["detail"].get("attempt", current)
            if told != current:
                yield f"{job['id']}: attempt {told} wrote {row['event']} during attempt {current}"


def ends_have_reasons(records: Records) -> Iterator[str]:
    """What failed, was cancelled or rejected says why, and so does a job that was queued again."""
    for table in LIVES:
        for row in records[table]:
            if row["state"] in ("failed", "cancelled", "rejected") and not row["reason"]:
                yield f"{row['id']} is {row['state']} without a reason"
    for job in records["jobs"]:
        if job["state"] == "failed" and not (job["failure"] or {}).get("kind"):
            yield f"{job['id']} failed without a kind of failure"
        for row in states_of(records, "jobs", job["id"])[1:]:
            if row["event"] == "queued" and not row["detail"].get("reason"):
                yield f"{job['id']} was queued again without a reason"


def a_worker_runs_one_job_and_a_model_one_training(records: Records) -> Iterator[str]:
    """No two attempts of one worker, and no two training jobs of one model, at the same time."""
    changes = (
        {**row, "kind": job["kind"], "model_id": job["model_id"]}
        for job in records["jobs"]
        for row in states_of(records, "jobs", job["id"])
    )
    return at_once(sorted(changes, key=lambda row: row["seq"]))


def at_once(changes: Iterable[Row]) -> Iterator[str]:
    """What the rule before finds in changes of jobs' states, oldest first; each has its job's kind and model.

    A review makes room for what somebody waits for: its worker holds one other job beside it. Of all
    changes those that began what has not ended are in memory, no more.
    """
    holders: dict[str, str] = {}
    lanes: dict[str, list[str]] = {}
    for row in changes:
        job_id = row["subject_id"]
        if row["event"] in LIVE and row["event"] != "running":
            continue
        for lane in lanes.pop(job_id, ()):
            if holders.get(lane) == job_id:
                del holders[lane]
        if row["event"] != "running":
            continue
        worker = row["detail"].get("worker", "")
        taken = [f"{worker}, reviewing," if row["kind"] == "review" else worker]
        if row["kind"] in TRAINING:
            taken.append(row["model_id"])
        for lane in taken:
            if lane in holders:
                yield f"{lane} runs {holders[lane]} and {job_id} at once"
            holders[lane] = job_id
        lanes[job_id] = taken


def a_request_goes_with_its_job(records: Records) -> Iterator[str]:
    """A request that is part of a job is where the job is."""
    follows = {
        "queued": "queued",
        "running": "running",
        "evaluating": "running",
        "succeeded": "completed",
        "failed": "failed",
        "cancelled": "cancelled",
    }
    for request in records["requests"]:
        job = records.one("jobs", request["job_id"])
        if job is not None and request["state"] != follows[job["state"]]:
            yield f"{request['id']} is {request['state']}, its job {job['id']} {job['state']}"


def live_jobs_have_live_leases(records: Records, tolerance_seconds: float) -> Iterator[str]:
    """A running job's lease ran out no longer ago than it takes to notice."""
    (clock,) = records["clock"]
    for job in records["jobs"]:
        if job["state"] in LIVE:
            late = (clock["now"] - job["lease_expires_at"]).total_seconds()
            if late > tolerance_seconds:
                yield f"{job['id']} is {job['state']}; its lease ran out {late:.1f} s ago"
