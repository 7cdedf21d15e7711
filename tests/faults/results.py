"""Checks of the lab, beside the rules that the service checks itself: what was accepted is there, nothing is left."""

from collections import Counter
from collections.abc import Iterator

from tests.faults.records import Records

from expunge.registry.fsck.lives import LIVES

TABLES = {
    "pty": "parties",
    "key": "api_keys",
    "dst": "datasets",
    "mdl": "models",
    "ckp": "checkpoints",
    "req": "requests",
    "job": "jobs",
    "aud": "audits",
    "cmp": "comparisons",
}
"""Where the thing with an id of this prefix is."""


def what_was_accepted_is_there(records: Records) -> Iterator[str]:
    """What a user was answered exists, and is what their key stands for."""
    keys = {(r["party_id"], r["key"]): r["resource_id"] for r in records["idempotency_keys"]}
    for (party, key), resource in records.accepted.items():
        if records.one(TABLES[resource.partition("_")[0]], resource) is None:
            yield f"{resource} was accepted and is lost"
        if keys.get((party, key)) != resource:
            yield f"key {key} gave {resource}, and stands for {keys.get((party, key))}"


def a_key_makes_one_request(records: Records) -> Iterator[str]:
    """Users send a key with every request: there are no more requests than keys."""
    keys = Counter(row["resource_id"] for row in records["idempotency_keys"])
    for request in records["requests"]:
        if keys[request["id"]] != 1:
            yield f"{request['id']} stands for {keys[request['id']]} keys"


def objects_are_named(records: Records) -> Iterator[str]:
    """After a sweep, with nothing running: an object's key is in some row, or the object is not there."""
    rows = records.text(without=["pending_objects", "log"])
    for key in sorted(records.objects):
        if key not in rows:
            yield f"object {key} is named by nothing"
        if key.startswith("snapshots/"):
            yield f"snapshot {key} was left"


def no_note_is_left(records: Records) -> Iterator[str]:
    """After a sweep, with nothing running: notes are of removed objects only."""
    for note in records["pending_objects"]:
        if note["lease_token"] != "gone" or note["key"] in records.objects:
            yield f"a note of {note['key']} is left ({note['lease_token']})"


def nothing_is_left_undone(records: Records) -> Iterator[str]:
    """Every request and every job has ended, and what waited for one knows."""
    unfinished = {table: {s for s in life if life[s]} for table, (life, _) in LIVES.items()}
    unfinished |= {"datasets": {"sealing"}, "checkpoints": {"checking"}}
    for table, states in unfinished.items():
        for row in records[table]:
            if row["state"] in states:
                yield f"{row['id']} is still {row['state']}"
