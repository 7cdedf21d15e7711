"""Small data sets, a small model and their owners, for tests that drive jobs without HTTP."""

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest
from PIL import Image
from sqlalchemy import Engine

from expunge.formats.digests import sha256_file
from expunge.formats.shards import Sample, make_sample, write_shard
from expunge.registry import datasets, models, parties, requests, waiting
from expunge.registry.database import sessions
from expunge.registry.jobs import Lease
from expunge.registry.objects import open_store
from expunge.registry.policies import Policy
from expunge.registry.settings import Settings
from expunge.registry.tables import Job, JobKind, Model, Party, Request, Role
from expunge.unlearning.catalog import CLIP, Architecture, EncoderSpec, MoCo, PretrainParams, SimCLR
from expunge.worker.context import Context
from expunge.worker.running import Runner

# Several processes train tiny networks at once: more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

WAIT_SECONDS = 60
ENCODER = EncoderSpec(
    objective=SimCLR(projector_hidden=16, projector_dim=8),
    architecture=Architecture(width=4),
    image_size=16,
)
SMALLEST_CLIP = EncoderSpec(objective=CLIP(context_length=16), image_size=16)
MOCO = EncoderSpec(
    objective=MoCo(projector_dim=8, queue_size=32),
    architecture=Architecture(width=4),
    image_size=16,
)
SHORT = PretrainParams(epochs=2, batch_size=16)
LONG = PretrainParams(epochs=10_000, batch_size=16)


def images(prefix: str, count: int, seed: int, *, captioned: bool = False) -> list[Sample]:
    """Noise images as PNG, 16 × 16, with labels and, on demand, captions."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(out, "PNG")
        found.append(
            make_sample(
                f"{prefix}-{number:03d}",
                "png",
                out.getvalue(),
                label=number % 10,
                caption=f"noise number {number} of {prefix}" if captioned else None,
            )
        )
    return found


class Hands:
    """A worker of all kinds that does the job it is given, out of turn."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.runner = Runner(context, list(JobKind))

    def run(self, job_id: str) -> None:
        lease = waiting.claim(
            self.context.sessions,
            job_id,
            worker=self.runner.name,
            lease_seconds=self.context.settings.lease_seconds,
        )
        if lease is not None:
            self.runner.carry_out(lease)


class Lab:
    """What a test does by hand where users go through HTTP."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(
            database_url=engine.url.render_as_string(hide_password=False),
            object_store=(folder / "objects").as_uri(),
            work_dir=folder / "work",
            lease_seconds=5,
            retry_seconds=0.1,
            outage_patience_seconds=5,
            device="cpu",
        )
        self.sessions = sessions(engine)
        self.store = open_store(self.settings)
        self.context = Context(self.settings, self.sessions, self.store)
        self.runner = Hands(self.context)

    def with_settings(self, **changes: Any) -> Hands:
        """Another worker over the same stores."""
        settings = self.settings.model_copy(update=changes)
        return Hands(Context(settings, self.sessions, open_store(settings)))

    def claim(self, job_id: str) -> Lease:
        lease = waiting.claim(self.sessions, job_id, worker="tester", lease_seconds=60)
        assert lease is not None
        return lease

    def party(self, name: str, role: Role) -> Party:
        with self.sessions.begin() as session:
            return parties.create_party(session, name, role, actor="test")

    def shard(self, name: str, samples: Sequence[Sample]) -> datasets.StoredShard:
        path = self.folder / name
        count = write_shard(path, samples)
        digest = sha256_file(path)
        key = self.store.put(path, digest)
        return datasets.StoredShard(name, f"sha256:{digest}", path.stat().st_size, count, key)

    def dataset(self, owner: Party, name: str, shards: Sequence[Sequence[Sample]]) -> str:
        with self.sessions.begin() as session:
            dataset = datasets.create(session, owner, name)
            for number, samples in enumerate(shards):
                datasets.add_shard(
                    session, owner, dataset.id, self.shard(f"{name}-{number}.tar", samples)
                )
            return dataset.id

    def sealed(self, owner: Party, name: str, samples: Sequence[Sample]) -> str:
        dataset_id = self.dataset(owner, name, [samples])
        self.seal(owner, dataset_id)
        return dataset_id

    def seal(self, owner: Party, dataset_id: str) -> None:
        with self.sessions.begin() as session:
            _, job = datasets.start_sealing(session, owner, dataset_id)
        assert job is not None
        self.runner.run(job.id)

    def model(self, owner: Party, encoder: EncoderSpec = ENCODER, **options: Any) -> str:
        policy = Policy(batch_window_seconds=options.pop("batch_window_seconds", 0))
        with self.sessions.begin() as session:
            return models.create(
                session,
                owner,
                options.pop("name", "encoder"),
                encoder,
                policy=policy,
                control_dataset_id=options.pop("control_dataset_id", None),
            ).id

    def pretraining(
        self, owner: Party, model_id: str, dataset_ids: list[str], params: PretrainParams = SHORT
    ) -> str:
        with self.sessions.begin() as session:
            return models.start_pretraining(
                session, owner, model_id, dataset_ids, params, seed=3
            ).id

    def request(self, owner: Party, model_id: str, dataset_ids: list[str], **params: Any) -> str:
        with self.sessions.begin() as session:
            return requests.create(
                session,
                owner,
                model_id=model_id,
                dataset_ids=dataset_ids,
                method="alignment_calibration",
                params={"epochs": 1, "batch_size": 16} | params,
            ).id

    def job(self, job_id: str) -> Job:
        with self.sessions() as session:
            return session.get_one(Job, job_id)

    def job_of(self, request_id: str) -> Job:
        with self.sessions() as session:
            return self.job(str(session.get_one(Request, request_id).job_id))

    def head(self, model_id: str) -> str | None:
        with self.sessions() as session:
            return session.get_one(Model, model_id).head_checkpoint_id


class World:
    """A model owner with own data, two data owners who granted theirs, control images, a model."""

    def __init__(self, lab: Lab, encoder: EncoderSpec = ENCODER, **model: Any) -> None:
        self.model_owner = lab.party("model owner", Role.MODEL_OWNER)
        self.first_owner = lab.party("first owner", Role.DATA_OWNER)
        self.second_owner = lab.party("second owner", Role.DATA_OWNER)
        self.own = lab.sealed(self.model_owner, "own", images("own", 40, 0))
        self.first = lab.sealed(self.first_owner, "first", images("first", 12, 1))
        self.second = lab.sealed(self.second_owner, "second", images("second", 12, 2))
        self.seconds = [self.second]
        self.control = lab.sealed(self.model_owner, "control", images("control", 12, 3))
        with lab.sessions.begin() as session:
            datasets.grant(session, self.first_owner, self.first, self.model_owner.id)
            datasets.grant(session, self.second_owner, self.second, self.model_owner.id)
        self.model = lab.model(self.model_owner, encoder, **model)

    @property
    def training_data(self) -> list[str]:
        return [self.own, self.first, self.second]


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition holds; fail the test if it does not in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {WAIT_SECONDS} s in vain: {what}")


class Running:
    """A job that runs in a thread of the test, caught in the middle."""

    def __init__(self, lab: Lab, job_id: str, **settings: Any) -> None:
        self.lab, self.job_id = lab, job_id
        changed = lab.settings.model_copy(update=settings)
        self.context = Context(changed, lab.sessions, lab.store)
        self.thread = threading.Thread(target=Hands(self.context).run, args=(job_id,))

    def __enter__(self) -> Self:
        self.thread.start()
        eventually(lambda: self.lab.job(self.job_id).progress, "the job trains")
        return self

    def __exit__(self, *_: object) -> None:
        self.context.stopping.set()
        self.thread.join(30)
        assert not self.thread.is_alive()

    @property
    def process(self) -> psutil.Process:
        children = psutil.Process(os.getpid()).children()
        return next(c for c in children if "expunge.worker.training_process" in c.cmdline())


@contextmanager
def worker_process(role: str, settings: Settings, redis_url: str, log: Path) -> Iterator[None]:
    """A real process `python -m expunge.worker ROLE`."""
    environment = os.environ | {
        "EXPUNGE_DATABASE_URL": settings.database_url,
        "EXPUNGE_OBJECT_STORE": settings.object_store,
        "EXPUNGE_WORK_DIR": str(settings.work_dir),
        "EXPUNGE_LEASE_SECONDS": str(settings.lease_seconds),
        "EXPUNGE_REPUBLISH_SECONDS": str(settings.republish_seconds),
        "EXPUNGE_DEVICE": "cpu",
        "EXPUNGE_WORKER_LABELS": ",".join(settings.worker_labels),
        "EXPUNGE_REDIS_URL": redis_url,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "expunge.worker", role],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
        assert process.poll() is None, log.read_text()[-2000:]
    finally:
        process.terminate()
        process.wait(30)
