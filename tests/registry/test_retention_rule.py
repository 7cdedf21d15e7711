"""The rule of retention on any rows at all: what is needed is never due, and all else is when its time is over."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from expunge.registry import retention
from expunge.registry.database import Sessions
from expunge.registry.tables import (
    Audit,
    Checkpoint,
    CheckpointDataset,
    Dataset,
    Encoding,
    Job,
    JobKind,
    Model,
    Party,
    Request,
    RequestDataset,
    Role,
)

PARTY, SETS = "pty_rule", ("dst_rule_a", "dst_rule_b", "dst_rule_c")
MODELS = ("mdl_rule_looked_at", "mdl_rule_other")
EXISTING = {"checking", "ready", "invalid"}
UNFINISHED = {"queued", "running", "evaluating"}
USES = ("base", "check", "result", "audit before", "audit after", "audit since", "encoding before")

OF_JOB = {"base": "base_checkpoint_id", "check": "checkpoint_id", "result": "result_checkpoint_id"}
SPARE = "ckp_rule_spare"
FILES = {
    "model_id": MODELS[0],
    "digest": "",
    "object_key": "",
    "bytes": 0,
    "release_digest": "",
    "release_key": "",
}


@dataclass(frozen=True)
class Weights:
    """A checkpoint: its state, what it retains and what it has forgotten."""

    state: str
    retained: frozenset[str]
    forgotten: frozenset[str]


@dataclass(frozen=True)
class Asked:
    """A request to a model, and for how many days it has been in force, if it is."""

    model: str
    sets: frozenset[str]
    state: str
    days: int | None


@dataclass(frozen=True)
class Use:
    """Work on a checkpoint (by number): what it uses it for, and the state of its job."""

    checkpoint: int
    purpose: str
    state: str


some_sets = st.frozensets(st.sampled_from(SETS))
weights = st.builds(
    Weights,
    st.sampled_from(["ready"] * 3 + ["checking", "invalid", "destroying", "destroyed"]),
    some_sets,
    some_sets,
)
asked = st.builds(
    Asked,
    st.sampled_from([MODELS[0], *MODELS]),
    st.frozensets(st.sampled_from(SETS), min_size=1),
    st.sampled_from(["completed"] * 3 + ["running", "failed"]),
    st.sampled_from([None, 5, 12, 40]),
)
uses = st.builds(
    Use,
    st.integers(0, 3),
    st.sampled_from(USES),
    st.sampled_from(["queued", "running", "evaluating", "succeeded", "failed", "cancelled"]),
)


@dataclass(frozen=True)
class World:
    """A model's checkpoints, requests about them and work on them; which is the head, if any."""

    checkpoints: list[Weights]
    requests: list[Asked]
    uses: list[Use]
    head: int | None
    keep_days: int

    def is_head(self, number: int) -> bool:
        return self.head is not None and self.head % len(self.checkpoints) == number

    def uses_of(self, number: int) -> list[Use]:
        return [use for use in self.uses if use.checkpoint % len(self.checkpoints) == number]

    def is_due(self, number: int) -> bool:
        """Slow and obvious."""
        checkpoint = self.checkpoints[number]
        over = any(
            request.model == MODELS[0]
            and request.state == "completed"
            and request.days is not None
            and request.days >= self.keep_days
            and request.sets & (checkpoint.retained - checkpoint.forgotten)
            for request in self.requests
        )
        needed = self.is_head(number) or any(
            use.state in UNFINISHED for use in self.uses_of(number)
        )
        return checkpoint.state in EXISTING and over and not needed


worlds = st.builds(
    World,
    st.lists(weights, min_size=1, max_size=4),
    st.lists(asked, min_size=1, max_size=3),
    st.lists(uses, max_size=2),
    st.none() | st.integers(0, 3),
    st.sampled_from([0, 10, 30]),
)


def write(session: Session, world: World) -> list[str]:
    """The world as rows; ids of its checkpoints."""
    ids = [f"ckp_rule_{number}" for number in range(len(world.checkpoints))]
    held: list[dict[str, Any]] = []
    for row_id, each in zip(ids, world.checkpoints, strict=True):
        held += [
            {"checkpoint_id": row_id, "dataset_id": name, "forgotten": name in each.forgotten}
            for name in each.retained | each.forgotten
        ]
    states = zip([*ids, SPARE], [*(each.state for each in world.checkpoints), "ready"], strict=True)
    checkpoints = [FILES | {"id": row_id, "state": state} for row_id, state in states]
    now = datetime.now(UTC)
    requests = [
        {
            "id": f"req_rule_{number}",
            "owner_id": PARTY,
            "model_id": each.model,
            "method": "fine_tune",
            "params": {},
            "state": each.state,
            "effective_at": None if each.days is None else now - timedelta(days=each.days),
        }
        for number, each in enumerate(world.requests)
    ]
    about = [
        {"request_id": f"req_rule_{number}", "dataset_id": name}
        for number, each in enumerate(world.requests)
        for name in each.sets
    ]
    for table, rows in (
        (Checkpoint, checkpoints),
        (CheckpointDataset, held),
        (Request, requests),
        (RequestDataset, about),
    ):
        if rows:
            session.execute(insert(table), rows)
    for number, use in enumerate(world.uses):
        write_use(session, number, use, ids[use.checkpoint % len(ids)])
    heads = [row_id for number, row_id in enumerate(ids) if world.is_head(number)]
    session.execute(
        update(Model)
        .where(Model.id == MODELS[0])
        .values(policy={"keep_days": world.keep_days}, head_checkpoint_id=next(iter(heads), None))
    )
    return ids


def write_use(session: Session, number: int, use: Use, checkpoint: str) -> None:
    what, _, side = use.purpose.partition(" ")
    job = {"id": f"job_rule_{number}", "kind": JobKind.COMPARE, "state": use.state, "params": {}}
    live = {"lease_token": "held"} if use.state in ("running", "evaluating") else {}
    of_job = {OF_JOB[what]: checkpoint} if what in OF_JOB else {}
    session.execute(insert(Job), [{"owner_id": PARTY} | job | live | of_job])
    if not of_job:
        row = {
            "id": f"x_rule_{number}",
            "request_id": "req_rule_0",
            "owner_id": PARTY,
            "party_id": PARTY,
            "job_id": job["id"],
            "before_checkpoint_id": SPARE,
            "after_checkpoint_id": SPARE,
        }
        table = Audit if what == "audit" else Encoding
        part = {f"{side}_checkpoint_id": checkpoint}
        session.execute(insert(table), [row | ({"settings": part} if side == "since" else part)])


@pytest.fixture(scope="module")
def rows(session_factory: Sessions) -> Sessions:
    """A party with three data sets and two models."""
    with session_factory.begin() as session:
        session.add(Party(id=PARTY, name="rule", role=Role.MODEL_OWNER))
        session.flush()
        session.add_all(Dataset(id=each, owner_id=PARTY, name=each) for each in SETS)
        session.add_all(
            Model(id=each, owner_id=PARTY, name=each, encoder={}, policy={}) for each in MODELS
        )
    return session_factory


@settings(max_examples=60, deadline=None)
@given(world=worlds)
def test_what_is_needed_is_never_due_and_all_else_is_when_its_time_is_over(
    rows: Sessions, world: World
) -> None:
    with rows() as session:
        ids = write(session, world)
        found = {row.id for row in retention.due(session, session.get_one(Model, MODELS[0]))}
        session.rollback()
    assert found == {row_id for number, row_id in enumerate(ids) if world.is_due(number)}
