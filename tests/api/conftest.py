"""The api as a real server on a loopback port, a worker beside it, and parties that talk to them over HTTP."""

import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from sqlalchemy import Engine

from expunge.api.app import create_app
from expunge.api.connections import BoundedProtocol
from expunge.evidence.signing import Signer
from expunge.formats.digests import content_digest, sha256_file
from expunge.formats.shards import Sample, make_sample, write_shard
from expunge.registry import checkpoints, comparisons, datasets, jobs, parties, waiting
from expunge.registry.database import Sessions, sessions
from expunge.registry.objects import ObjectStore, open_store, put_bytes
from expunge.registry.settings import Settings
from expunge.registry.tables import Comparison, JobKind, Party, Request, Role
from expunge.registry.transitions import move
from expunge.worker.context import Context
from expunge.worker.running import Runner

START_SECONDS = 30
CALL_SECONDS = 60
ENCODER = {
    "objective": {"framework": "simclr", "projector_hidden": 16, "projector_dim": 8},
    "architecture": {"name": "resnet18_cifar", "width": 4},
    "image_size": 16,
}
MAX_SHARD_BYTES = 2**20
FILES = ("table.json", "table.csv", "table.md", "chart.png", "scores.csv")
"""What a finished comparison offers."""

_numbers = itertools.count()


@pytest.fixture(scope="module")
def settings(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the api and the worker of this module."""
    folder = tmp_path_factory.mktemp("service")
    return Settings(
        database_url=database_url,
        object_store=(folder / "objects").as_uri(),
        work_dir=folder / "work",
        device="cpu",
        max_shard_bytes=MAX_SHARD_BYTES,
        max_checkpoint_bytes=4 * 2**20,
    )


@pytest.fixture(scope="module")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a new key lies, for modules whose settings name it."""
    path = tmp_path_factory.mktemp("keys") / "key.pem"
    Signer.create(path)
    return str(path)


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    """Address of the running api."""
    # The protocol is named since asyncio sets TCP_NODELAY only then: 40 ms on every answer.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app(settings),
            http=BoundedProtocol,
            log_config=None,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def worker(settings: Settings, engine: Engine) -> Iterator[Runner]:
    """The worker's own runner, which looks for work all the time (Celery's messages tell it to elsewhere)."""
    context = Context(settings, sessions(engine), open_store(settings))
    runner = Runner(context, list(JobKind))
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.03):
            runner.work_off()

    thread = threading.Thread(target=work)
    thread.start()
    yield runner
    over.set()
    context.stopping.set()
    thread.join()
    context.close()


@dataclass
class User:
    """A party with a key and an open connection."""

    id: str
    http: httpx.Client
    folder: Path
    sent: int = field(default=0)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return self.http.post(path, json=json, **options)

    def put_shard(
        self, dataset_id: str, data: bytes | Path, name: str = "train-00.tar", **headers: str
    ) -> httpx.Response:
        """Upload bytes, or a file, as a shard with its true digest unless another one is given."""
        path = data if isinstance(data, Path) else self._write(data)
        return self.http.put(
            f"/datasets/{dataset_id}/shards/{name}",
            content=path.read_bytes(),
            headers={"Content-Digest": content_digest(sha256_file(path))} | headers,
        )

    def _write(self, data: bytes) -> Path:
        path = self.folder / "body"
        path.write_bytes(data)
        return path

    def open_dataset(self) -> str:
        """A new, empty data set."""
        answer = self.post("/datasets", {"name": f"images {next(_numbers)}"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def dataset(self, samples: Sequence[Sample]) -> str:
        """A data set with one shard, not sealed."""
        dataset_id = self.open_dataset()
        answer = self.put_shard(dataset_id, shard_of(self.folder, samples))
        assert answer.status_code == 201, answer.text
        return dataset_id

    def sealed(self, samples: Sequence[Sample]) -> str:
        """A sealed data set with one shard; needs the worker."""
        dataset_id = self.dataset(samples)
        answer = self.post(f"/datasets/{dataset_id}/seal", headers={"Prefer": "wait=30"})
        assert answer.json()["state"] == "sealed", answer.text
        return dataset_id

    def model(self, **members: Any) -> str:
        """A new model without weights."""
        body = {"name": f"model {next(_numbers)}", "encoder": ENCODER} | members
        answer = self.post("/models", body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


def images(prefix: str, count: int, *, seed: int = 0, size: int = 16) -> list[Sample]:
    """Noise images as PNG with labels; keys begin with the prefix."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        out = io.BytesIO()
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        found.append(make_sample(f"{prefix}-{number:03d}", "png", out.getvalue(), number % 10))
    return found


def shard_of(folder: Path, samples: Sequence[Sample]) -> Path:
    """The samples as a shard file."""
    path = folder / "shard.tar"
    write_shard(path, samples)
    return path


@dataclass
class Cast:
    """Makes parties; closes their connections."""

    url: str
    sessions: Sessions
    folder: Path
    users: list[User] = field(default_factory=list)

    def party(self, role: Role) -> User:
        """A new party of the role with a key."""
        with self.sessions.begin() as session:
            party = parties.create_party(
                session, f"{role.value} {next(_numbers)}", role, actor="test"
            )
            issued = parties.issue_key(session, party.id, expires_in_days=1, actor="test")
        http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {issued.secret}"},
            timeout=CALL_SECONDS,
            trust_env=False,
        )
        user = User(party.id, http, self.folder)
        self.users.append(user)
        return user


@pytest.fixture(scope="module")
def cast(
    url: str, session_factory: Sessions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cast]:
    """Parties that live as long as the module."""
    cast = Cast(url, session_factory, tmp_path_factory.mktemp("bodies"))
    yield cast
    for user in cast.users:
        user.http.close()


@pytest.fixture(scope="module")
def anonymous(url: str) -> Iterator[httpx.Client]:
    """Somebody without a key."""
    with httpx.Client(base_url=url, timeout=CALL_SECONDS, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def operator(cast: Cast) -> User:
    return cast.party(Role.OPERATOR)


@pytest.fixture(scope="module")
def data_owner(cast: Cast) -> User:
    return cast.party(Role.DATA_OWNER)


@pytest.fixture(scope="module")
def other_owner(cast: Cast) -> User:
    return cast.party(Role.DATA_OWNER)


@pytest.fixture(scope="module")
def model_owner(cast: Cast) -> User:
    return cast.party(Role.MODEL_OWNER)


@pytest.fixture(scope="module")
def other_model_owner(cast: Cast) -> User:
    return cast.party(Role.MODEL_OWNER)


@dataclass
class Past:
    """What workers did before a test begins, written by the registry's own functions; no training."""

    sessions: Sessions
    store: ObjectStore
    folder: Path

    def sealed(self, owner: User, count: int = 3) -> str:
        """A sealed data set of the owner, without shards."""
        with self.sessions.begin() as session:
            party = session.get_one(Party, owner.id)
            dataset = datasets.create(session, party, f"images {next(_numbers)}")
            session.flush()
            move(session, dataset, "sealing")
            move(session, dataset, "sealed", digest="sha256:0", index_key="none", samples=count)
            return dataset.id

    def granted(self, owner: User, model_owner: User, count: int = 3) -> str:
        """A sealed data set that the model owner may train on."""
        dataset_id = self.sealed(owner, count)
        answer = owner.post(f"/datasets/{dataset_id}/grants", {"party_id": model_owner.id})
        assert answer.status_code == 201, answer.text
        return dataset_id

    def weights(self) -> checkpoints.StoredWeights:
        """An object that stands for a checkpoint's file."""
        key = put_bytes(self.store, f"weights {next(_numbers)}".encode(), self.folder)
        digest = f"sha256:{key.rpartition('/')[2]}"
        return checkpoints.StoredWeights(digest, key, 10, digest, key)

    def trained(
        self, model_owner: User, model_id: str, dataset_ids: list[str], **metrics: Any
    ) -> str:
        """A head for the model, trained on the data sets; returns its id."""
        answer = model_owner.post(f"/models/{model_id}/pretrain", {"dataset_ids": dataset_ids})
        assert answer.status_code == 202, answer.text
        lease = self.claimed(answer.json()["id"])
        with self.sessions.begin() as session:
            measured = {"seconds": 1.5} | metrics
            return checkpoints.record_pretrained(session, lease, self.weights(), measured).id

    def claimed(self, job_id: str) -> jobs.Lease:
        """The lease of a worker that begins with the job."""
        lease = waiting.claim(self.sessions, job_id, worker="tester", lease_seconds=60)
        assert lease is not None
        return lease

    def job_of(self, request_id: str) -> str:
        """The job that carries the request out."""
        with self.sessions() as session:
            return str(session.get_one(Request, request_id).job_id)

    def unlearned(self, request_id: str, **metrics: Any) -> str:
        """Complete the request's job; returns the result's id."""
        lease = self.claimed(self.job_of(request_id))
        with self.sessions.begin() as session:
            measured = {"seconds": 2.5} | metrics
            return checkpoints.record_unlearned(session, lease, self.weights(), measured).id

    def compared(self, comparison_id: str, **result: Any) -> None:
        """Complete the comparison with this result and a file of each name."""
        with self.sessions() as session:
            lease = self.claimed(session.get_one(Comparison, comparison_id).job_id)
        files = {
            name: put_bytes(self.store, f"{name} of {comparison_id}".encode(), self.folder)
            for name in FILES
        }
        with self.sessions.begin() as session:
            comparisons.record(session, lease, result, files)


@pytest.fixture(scope="module")
def past(session_factory: Sessions, settings: Settings, url: str) -> Past:
    """Ready-made history; for modules whose worker does not run."""
    assert url
    return Past(session_factory, open_store(settings), settings.work_dir)


def left_behind(settings: Settings) -> list[str]:
    """Temporary files and folders of calls that are over."""
    found = (each.name for each in settings.work_dir.rglob("*"))
    return sorted(name for name in found if name.startswith(("upload-", "release-")))


def problem_of(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem that the answer holds, after checking what every problem has."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:expunge:problem:{slug}", problem
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem
