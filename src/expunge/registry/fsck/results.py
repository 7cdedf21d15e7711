"""Rules about what came out: each result once, nothing forgotten comes back, heads that can be used."""

from collections.abc import Iterator

from expunge.registry.fsck.lives import TRAINING
from expunge.registry.fsck.records import Records, Row

PROMOTED = "promoted"
"""The log's event of a model that has a new head."""


def a_job_has_one_result(records: Records) -> Iterator[str]:
    """Exactly one checkpoint of each training job that succeeded, and none of any other.

    A removal of what the model holds no more has nothing to make.
    """
    for job in records["jobs"]:
        made = len(records.where("checkpoints", job_id=job["id"]))
        done = job["state"] == "succeeded" and job["kind"] in TRAINING
        expected = int(done and not _has_nothing_to_do(records, job))
        if made != expected:
            yield f"{job['id']} ({job['kind']}, {job['state']}) made {made} checkpoints"
        if expected and not records.where(
            "checkpoints", id=job["result_checkpoint_id"], job_id=job["id"]
        ):
            yield f"{job['id']} names {job['result_checkpoint_id']} as its result"


def _has_nothing_to_do(records: Records, job: Row) -> bool:
    if job["kind"] != "unlearn":
        return False
    requests = records.where("requests", job_id=job["id"])
    asked = {each for request in requests for each in records.datasets_of(request["id"])}
    return not asked & records.held(job["base_checkpoint_id"])


def what_was_asked_is_forgotten(records: Records) -> Iterator[str]:
    """The result of a completed request holds none of its data, and neither does a head that is in force."""
    for request in _completed(records):
        asked = records.datasets_of(request["id"])
        job = records.one("jobs", request["job_id"])
        result = job["result_checkpoint_id"] or job["base_checkpoint_id"] if job else None
        if result is None or asked & records.held(result):
            yield f"{request['id']} is completed; {result} has not forgotten all of it"
        model = records.one("models", request["model_id"])
        head = model and model["head_checkpoint_id"]
        held = asked & records.held(head) if head else set()
        if request["effective_at"] is not None and held:
            yield f"{request['id']} is in force, but {head} holds {sorted(held)}"
        if request["effective_at"] is None and not held:
            yield f"{request['id']} is not said to be in force, though {head} holds none of it"


def nothing_is_forgotten_twice(records: Records) -> Iterator[str]:
    """A data set is in the results of at most one job of a model."""
    for request in _completed(records):
        for dataset_id in sorted(records.datasets_of(request["id"])):
            for each in records.where("request_datasets", dataset_id=dataset_id):
                other = records.one("requests", each["request_id"])
                # Of two, the later one tells of both.
                if other is None or other["id"] >= request["id"]:
                    continue
                if (other["state"], other["model_id"]) == ("completed", request["model_id"]):
                    yield f"{dataset_id} was forgotten for {other['id']} and for {request['id']}"


def _completed(records: Records) -> Iterator[Row]:
    return (row for row in records["requests"] if row["state"] == "completed")


def lineage_is_a_chain(records: Records) -> Iterator[str]:
    """Each result stands on one parent of its model, keeps its data and forgets at least as much."""
    for checkpoint in records["checkpoints"]:
        job = records.one("jobs", checkpoint["job_id"])
        if job is None or job["kind"] != "unlearn":
            continue
        parent = records.one("checkpoints", checkpoint["parent_id"])
        if parent is None or parent["id"] != job["base_checkpoint_id"]:
            yield f"{checkpoint['id']} does not stand on its job's base"
            continue
        yield from _against_parent(records, checkpoint, parent)
        children = len(records.where("checkpoints", parent_id=parent["id"], problem=None))
        if children > 1:
            yield f"{parent['id']} has {children} results upon it"


def _against_parent(records: Records, checkpoint: Row, parent: Row) -> Iterator[str]:
    if checkpoint["model_id"] != parent["model_id"]:
        yield f"{checkpoint['id']} stands on another model's {parent['id']}"
    if records.trained_on(checkpoint["id"]) != records.trained_on(parent["id"]):
        yield f"{checkpoint['id']} was trained on other data than {parent['id']}"
    if not records.forgotten(parent["id"]) < records.forgotten(checkpoint["id"]):
        yield f"{checkpoint['id']} does not forget more than {parent['id']}"


def heads_can_be_used(records: Records) -> Iterator[str]:
    """A model's head is a ready checkpoint of its own, and the log says when it became that."""
    for model in records["models"]:
        head_id = model["head_checkpoint_id"]
        if head_id is None:
            continue
        head = records.one("checkpoints", head_id)
        if head is None or head["model_id"] != model["id"] or head["state"] != "ready":
            yield f"{model['id']} has {head_id} as head: {head and head['state']}"
        promotions = [r for r in records.history(model["id"]) if r["event"] == PROMOTED]
        if not promotions or promotions[-1]["detail"]["checkpoint_id"] != head_id:
            yield f"{model['id']} has {head_id} as head; its log does not say so"
