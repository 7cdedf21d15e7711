"""Rules about what the log tells: every life is a legal path, every attempt has one executor, nothing is skipped."""

from collections.abc import Iterator, Mapping
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


def _runs(records: Records, job: Row) -> Iterator[tuple[int, int, str]]:
    """First and last log number of each attempt, and its worker; an attempt that runs has no last one."""
    began: tuple[int, str] | None = None
    for row in states_of(records, "jobs", job["id"]):
        if row["event"] == "running":
            began = row["seq"], row["detail"].get("worker", "")
        elif row["event"] not in LIVE and began is not None:
            yield began[0], row["seq"], began[1]
            began = None
    if began is not None:
        yield began[0], 2**63, began[1]


def a_worker_runs_one_job_and_a_model_one_training(records: Records) -> Iterator[str]:
    """No two attempts of one worker, and no two training jobs of one model, at the same time.

    A review makes room for what somebody waits for: its worker holds one other job beside it.
    """
    taken: dict[str, list[tuple[int, int, str]]] = {}
    for job in records["jobs"]:
        for begin, end, worker in _runs(records, job):
            lane = f"{worker}, reviewing," if job["kind"] == "review" else worker
            taken.setdefault(lane, []).append((begin, end, job["id"]))
            if job["kind"] in TRAINING:
                taken.setdefault(job["model_id"], []).append((begin, end, job["id"]))
    for whose, runs in taken.items():
        for (_, end, first), (begin, _, second) in pairwise(sorted(runs)):
            if begin < end:
                yield f"{whose} runs {first} and {second} at once"


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
