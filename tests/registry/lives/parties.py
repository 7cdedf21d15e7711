"""What owners may ask of the registry, as rules of a state machine beside its twin."""

from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import select
from sqlalchemy.orm import Session
from tests.registry.conftest import House, weights
from tests.registry.lives.twin import (
    LIVE,
    Sets,
    Twin,
    TwinModel,
    TwinPolicy,
    TwinRequest,
)

from expunge.registry import checkpoints, datasets, jobs, models, requests, waiting
from expunge.registry.database import Sessions
from expunge.registry.errors import Conflict, NotFound
from expunge.registry.tables import Job, Party, Role
from expunge.registry.transitions import StateChanged, move
from expunge.unlearning.catalog import PretrainParams

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("alignment_calibration", {}),
    ("alignment_calibration", {"epochs": 3}),
    ("fine_tune", {}),
]
WAITING_OR_LIVE = {"queued", *LIVE}

PICK = st.integers(0, 30)
"""Which of the things that there are, modulo their number."""
SOME = st.integers(1, 63)
"""A choice of data sets as bits."""
OWNERS = st.sets(st.integers(0, 2), min_size=1)
WAY = st.sampled_from([0, 0, 1, 2])
POLICIES = st.builds(
    TwinPolicy,
    approval=st.sampled_from(["automatic", "automatic", "manual"]),
    batch_window_seconds=st.sampled_from([0, 600]),
    max_batch_samples=st.sampled_from([None, None, 8, 20]),
    promotion=st.sampled_from(["automatic", "automatic", "manual"]),
    min_forgetting=st.sampled_from([None, None, 0.1]),
    max_utility_loss=st.sampled_from([None, None, 0.05]),
)


class World:
    """Three owners with two data sets each, of 1, 2, 4, 8, 16, 32 samples: every sum is another choice of them."""

    def __init__(self, sessions: Sessions) -> None:
        self.house = House(sessions)
        self.sessions = sessions
        self.model_owner = self.house.party(Role.MODEL_OWNER)
        self.owners = [self.model_owner, *(self.house.party(Role.DATA_OWNER) for _ in range(2))]
        self.sets: dict[str, Party] = {}
        self.samples: dict[str, int] = {}
        with sessions.begin() as session:
            for number in range(6):
                owner, count = self.owners[number % 3], 2**number
                row = datasets.create(session, owner, f"images {number}")
                move(session, row, "sealing")
                move(session, row, "sealed", digest="sha256:0", index_key="none", samples=count)
                datasets.grant(session, owner, row.id, self.model_owner.id)
                self.sets[row.id], self.samples[row.id] = owner, count


class Parties(RuleBasedStateMachine):
    """Two models trained on everything, and what their owner and the data's owners may ask."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.house, self.sessions, self.sets = world.house, world.sessions, world.sets
        self.model_owner, self.owners = world.model_owner, world.owners
        self.twin = Twin(world.samples)
        self.calls: list[tuple[Party, dict[str, Any], str]] = []

    @initialize(rules=st.tuples(POLICIES, POLICIES))
    def begin(self, rules: tuple[TwinPolicy, TwinPolicy]) -> None:
        for number, policy in enumerate(rules):
            model = self.house.model(self.model_owner)
            self.twin.models[model] = TwinModel()
            job_id = self.house.pretraining(self.model_owner, model, [*self.sets])
            self.twin.train(job_id, model, frozenset(self.sets))
            lease = self.house.claim(job_id)
            self.twin.start(job_id, lease.token)
            row = self.answer(None, checkpoints.record_pretrained, lease, weights(), {})
            self.twin.pretrained(job_id, row.id)
            self.change_policy(2 * number, policy)

    def teardown(self) -> None:
        """Leave an empty queue to the next run."""
        with self.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.state.in_(WAITING_OR_LIVE))):
                jobs.cancel(session, job, actor="test", reason="the run is over")

    def model(self, pick: int) -> str:
        """The first one twice as often, so that more happens to it."""
        return list(self.twin.models)[pick % 3 // 2]

    def choice(self, bits: int, of: Collection[str]) -> Sets:
        """Some of these data sets, at least one."""
        chosen = {each for number, each in enumerate(self.sets) if bits >> number & 1} & {*of}
        return frozenset(chosen or of)

    def one_job(self, pick: int) -> str:
        return list(self.twin.jobs)[pick % len(self.twin.jobs)]

    def one_request(self, pick: int) -> tuple[str, TwinRequest]:
        return list(self.twin.requests.items())[pick % len(self.twin.requests)]

    def answer(
        self, refusal: type[Exception] | None, call: Callable[..., Any], *args: Any, **named: Any
    ) -> Any:
        """What the call returns in a transaction of its own; None if it is refused as it must be."""
        if refusal is None:
            with self.sessions.begin() as session:
                return call(session, *args, **named)
        with pytest.raises(refusal) as refused, self.sessions.begin() as session:
            call(session, *args, **named)
        assert refused.type is refusal
        return None

    @rule(pick=PICK, owners=OWNERS, bits=SOME, way=WAY)
    def ask(self, pick: int, owners: set[int], bits: int, way: int) -> None:
        """One after the other, for some of their own in the same way."""
        for number in sorted(owners):
            self.ask_alone(self.model(pick), self.owners[number], bits, way)

    def ask_alone(self, model: str, owner: Party, bits: int, way: int) -> None:
        chosen = self.choice(bits, [each for each, of in self.sets.items() if of is owner])
        call: dict[str, Any] = {
            "model_id": model,
            "dataset_ids": sorted(chosen),
            "method": WAYS[way][0],
            "params": WAYS[way][1],
            "idempotency_key": f"{model} {len(self.calls)}",
        }
        refusal = self.twin.refuses_request(model, chosen)
        row = self.answer(refusal, requests.create, owner, **call)
        if row is not None:
            self.calls.append((owner, call, row.id))
            request = TwinRequest(owner.id, model, chosen, way)
            self.twin.requests[row.id] = request
            if self.twin.models[model].policy.approval == "automatic":
                self.twin.take_up(request, row.job_id)

    @rule(pick=PICK, bits=SOME)
    def ask_oddly(self, pick: int, bits: int) -> None:
        """Once more with the same key, or for what is not all their own."""
        if self.calls and pick % 2:
            party, call, request_id = self.calls[pick % len(self.calls)]
            assert self.answer(None, requests.create, party, **call).id == request_id
            return
        party = self.owners[pick % 3]
        foreign = next(each for each, of in self.sets.items() if of is not party)
        call = {
            "model_id": self.model(pick),
            "dataset_ids": sorted(self.choice(bits, self.sets) | {foreign}),
            "method": "fine_tune",
            "params": {},
        }
        self.answer(NotFound, requests.create, party, **call)

    @precondition(lambda self: self.twin.requests)
    @rule(pick=PICK)
    def withdraw(self, pick: int) -> None:
        request_id, request = self.one_request(pick)
        owner = next(each for each in self.owners if each.id == request.owner)
        refusal = self.twin.refuses_withdrawal(request)
        self.answer(refusal, requests.withdraw, owner, request_id)
        if refusal is None and request.state != "cancelled":
            self.twin.withdraw(request)

    @precondition(lambda self: self.twin.requests)
    @rule(pick=PICK, rejected=st.booleans())
    def decide(self, pick: int, *, rejected: bool) -> None:
        request_id, request = self.one_request(pick)
        refusal = None if request.state == "received" else StateChanged
        if rejected:
            self.answer(refusal, requests.reject, self.model_owner, request_id, "no")
        else:
            row = self.answer(refusal, requests.approve, self.model_owner, request_id)
        if refusal is None and rejected:
            request.state = "rejected"
        elif refusal is None:
            self.twin.take_up(request, row.job_id)

    @rule(pick=PICK, bits=SOME)
    def pretrain(self, pick: int, bits: int) -> None:
        model, chosen = self.model(pick), self.choice(bits, self.sets)
        refusal = self.twin.refuses_training(model, chosen)
        row = self.answer(
            refusal,
            models.start_pretraining,
            self.model_owner,
            model,
            sorted(chosen),
            PretrainParams(),
            seed=0,
        )
        if row is not None:
            self.twin.train(row.id, model, chosen)

    @rule(pick=PICK, policy=POLICIES)
    def change_policy(self, pick: int, policy: TwinPolicy) -> None:
        model = self.model(pick)
        self.answer(None, models.change_policy, self.model_owner, model, asdict(policy))
        self.twin.models[model].policy = policy

    @rule(pick=PICK)
    def promote(self, pick: int) -> None:
        found = list(self.twin.checkpoints.items())
        checkpoint_id, checkpoint = found[-1 - pick % len(found)]
        refusal = self.twin.refuses_promotion(checkpoint)
        self.answer(refusal, checkpoints.promote, self.model_owner, checkpoint_id)
        if refusal is None:
            self.twin.models[checkpoint.model].head = checkpoint_id

    @precondition(lambda self: self.twin.jobs)
    @rule(pick=PICK, priority=st.none() | st.integers(0, 9))
    def cancel_or_prioritise(self, pick: int, priority: int | None) -> None:
        job_id = self.one_job(pick)
        job = self.twin.jobs[job_id]

        def cancel(session: Session) -> None:
            row = session.get_one(Job, job_id)
            jobs.cancel(session, row, actor=self.model_owner.id, reason="no")

        def prioritise(session: Session) -> None:
            row = session.get_one(Job, job_id)
            waiting.prioritise(session, self.model_owner.id, row, priority or 0)

        if priority is None:
            refusal = None if job.state in WAITING_OR_LIVE else StateChanged
            self.answer(refusal, cancel)
            if refusal is None:
                self.twin.end(job_id, "cancelled", "cancelled")
        else:
            refusal = None if job.state == "queued" else Conflict
            self.answer(refusal, prioritise)
            if refusal is None:
                job.priority = priority

    @precondition(lambda self: self.twin.jobs)
    @rule(pick=PICK)
    def let_time_pass(self, pick: int) -> None:
        self.make_due(self.one_job(pick))

    def make_due(self, job_id: str) -> None:
        """Its window ends, or its pause after a crash."""

        def pass_time(session: Session) -> None:
            job = session.get_one(Job, job_id)
            job.due_at = job.created_at

        self.answer(None, pass_time)
        self.twin.jobs[job_id].due = True
