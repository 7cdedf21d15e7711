"""How long jobs waited although a worker was free: what lost wake-ups have cost. Reads rows only."""

from datetime import datetime

from tests.faults.records import Records

from expunge.registry.fsck.lives import LIVE, TRAINING, states_of


def seconds_beside_a_free_worker(records: Records) -> list[float]:
    """Of each job's last attempt: from when it could have been claimed by who claimed it until it was.

    That is once it was due, no other training job of its model ran, and the worker had ended its attempt
    before; the first attempt of a worker is left out, since nothing tells since when it was ready.
    Outages that kept the worker from claiming count as well.
    """
    ends: list[tuple[datetime, str, str | None]] = []
    for job in records["jobs"]:
        worker, trains = "", job["kind"] in TRAINING
        for row in states_of(records, "jobs", job["id"]):
            if row["event"] == "running":
                worker = row["detail"]["worker"]
            elif row["event"] not in LIVE and worker:
                ends.append((row["at"], worker, job["model_id"] if trains else None))
                worker = ""
    found = []
    for job in records["jobs"]:
        claimed = job["claimed_at"]
        if claimed is None:
            continue
        before = [end for end in ends if end[0] <= claimed]
        free = [at for at, worker, _ in before if worker == job["worker"]]
        if not free:
            continue
        others = [at for at, _, model in before if model and model == job["model_id"]]
        found.append((claimed - max([job["due_at"], *free, *others])).total_seconds())
    return found
