"""A model with data of two owners, in the database only: no HTTP, no worker, no weights."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.orm import Session

from expunge.registry import checkpoints, datasets, jobs, models, parties, requests, waiting
from expunge.registry.database import Sessions
from expunge.registry.policies import Policy
from expunge.registry.tables import Job, JobKind, Model, Party, Request, Role
from expunge.registry.transitions import move
from expunge.unlearning.catalog import EncoderSpec, PretrainParams, SimCLR

LEASE_SECONDS = 60

_numbers = itertools.count()


def weights() -> checkpoints.StoredWeights:
    """Names of objects that nobody reads."""
    name = f"sha256:{next(_numbers)}"
    return checkpoints.StoredWeights(name, name, 10, name, name)


@dataclass
class House:
    """Shortcuts to the registry's functions, each in a transaction of its own."""

    sessions: Sessions

    def party(self, role: Role) -> Party:
        with self.sessions.begin() as session:
            return parties.create_party(session, f"party {next(_numbers)}", role, actor="test")

    def sealed(self, owner: Party, *granted_to: Party) -> str:
        with self.sessions.begin() as session:
            row = datasets.create(session, owner, f"images {next(_numbers)}")
            move(session, row, "sealing")
            move(session, row, "sealed", digest="sha256:0", index_key="none")
            for party in granted_to:
                datasets.grant(session, owner, row.id, party.id)
            return row.id

    def model(self, owner: Party, *, window: float = 0, promotion: str = "automatic") -> str:
        policy = Policy.model_validate({"batch_window_seconds": window, "promotion": promotion})
        with self.sessions.begin() as session:
            return models.create(
                session,
                owner,
                f"model {next(_numbers)}",
                EncoderSpec(objective=SimCLR()),
                policy=policy,
                control_dataset_id=None,
            ).id

    def pretraining(self, owner: Party, model_id: str, dataset_ids: list[str]) -> str:
        with self.sessions.begin() as session:
            return models.start_pretraining(
                session, owner, model_id, dataset_ids, PretrainParams(), seed=0
            ).id

    def pretrained(self, owner: Party, model_id: str, dataset_ids: list[str]) -> str:
        lease = self.claim(self.pretraining(owner, model_id, dataset_ids))
        with self.sessions.begin() as session:
            return checkpoints.record_pretrained(session, lease, weights(), {"seconds": 1.0}).id

    def ask(
        self, owner: Party, model_id: str, dataset_id: str, params: dict[str, Any] | None = None
    ) -> str:
        with self.sessions.begin() as session:
            return requests.create(
                session,
                owner,
                model_id=model_id,
                dataset_ids=[dataset_id],
                method="alignment_calibration",
                params=params or {},
            ).id

    def seal_job(self, owner: Party | None = None) -> str:
        """A queued job that belongs to no model."""
        return self.waiting_job(JobKind.SEAL, owner)

    def waiting_job(self, kind: JobKind, owner: Party | None = None, **values: Any) -> str:
        owner_id = (owner or self.party(Role.DATA_OWNER)).id
        with self.sessions.begin() as session:
            return waiting.enqueue(
                session, kind, actor="test", owner_id=owner_id, params={}, **values
            ).id

    def claim(self, job_id: str, seconds: float = LEASE_SECONDS) -> jobs.Lease:
        lease = waiting.claim(self.sessions, job_id, worker="tester", lease_seconds=seconds)
        assert lease is not None
        return lease

    def job(self, job_id: str) -> Job:
        with self.sessions() as session:
            return session.get_one(Job, job_id)

    def request(self, request_id: str) -> Request:
        with self.sessions() as session:
            return session.get_one(Request, request_id)

    def head(self, model_id: str) -> str | None:
        with self.sessions() as session:
            return session.get_one(Model, model_id).head_checkpoint_id


@dataclass
class Scene:
    """A trained model and two owners who may ask it to forget."""

    house: House
    model_owner: Party
    first: Party
    second: Party
    model: str
    own: str
    firsts: str
    seconds: str
    base: str


@pytest.fixture
def house(session_factory: Sessions) -> House:
    return House(session_factory)


@pytest.fixture
def scene(house: House) -> Scene:
    model_owner, first, second = (
        house.party(role) for role in (Role.MODEL_OWNER, Role.DATA_OWNER, Role.DATA_OWNER)
    )
    own = house.sealed(model_owner)
    firsts, seconds = house.sealed(first, model_owner), house.sealed(second, model_owner)
    model = house.model(model_owner)
    base = house.pretrained(model_owner, model, [own, firsts, seconds])
    return Scene(house, model_owner, first, second, model, own, firsts, seconds, base)


def expire(session: Session, job_id: str) -> None:
    """Let the job's lease run out now."""
    session.get_one(Job, job_id).lease_expires_at = session.get_one(Job, job_id).created_at
