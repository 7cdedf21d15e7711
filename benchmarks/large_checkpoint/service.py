"""The service over rclone's S3 server, with a worker that checks what comes in, and who uses it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from expunge.embedded.postgres import start_postgres
from expunge.registry import datasets, models, parties
from expunge.registry.database import connect, sessions
from expunge.registry.migration import migrate
from expunge.registry.policies import Policy
from expunge.registry.tables import Role
from expunge.registry.transitions import move
from http_load import HOST, free_ports
from large_checkpoint.file import spec_of

BUCKET, KEY, SECRET = "expunge", "key", "secret-of-the-store"
GIB = 2**30
START_SECONDS = 300
LOOK_SECONDS = 0.1
WORKER = Path(__file__).with_name("worker.py")


@dataclass
class Run:
    """The running service, who uses it, and what was measured."""

    folder: Path
    environment: dict[str, str]
    url: str
    key: str
    dataset_id: str
    api: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]
    models: dict[str, str]
    """Ids by the name of the architecture."""
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sending: dict[str, dict[str, float]] = field(default_factory=dict)
    """Bytes that came, bytes that had come before, and seconds, of each client."""
    half: int = 0
    """Bytes of the download that were there when it was killed."""

    @property
    def objects(self) -> Path:
        """Where the S3 server keeps the bucket."""
        return self.folder / "store" / BUCKET

    def restart_api(self) -> None:
        """Start it again after it was killed."""
        self.api = _api(self.folder, self.environment, self.url)
        _ready(self.url, self.api)

    def note_memory(self, when: str) -> None:
        """The peak of resident memory of api and worker since they were started, in MiB."""
        for name, process in (("api", self.api), ("worker", self.worker)):
            status = Path(f"/proc/{process.pid}/status").read_text()
            [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            self.memory.setdefault(name, {})[when] = round(int(peak) / 1024)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note how long the block takes."""
        before = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - before


@contextmanager
def running(
    folder: Path, scratch: Path, rclone: str, architectures: Sequence[str]
) -> Iterator[Run]:
    """The running service; `scratch` is where the api puts parts together."""
    (folder / "store" / BUCKET).mkdir(parents=True)
    store_port, port = free_ports(2)
    s3 = f"http://{HOST}:{store_port}"
    with start_postgres(folder / "postgres", durable=False) as database_url:
        migrate(database_url)
        given = {
            "database_url": database_url,
            "redis_url": f"redis://{HOST}:1/0",
            "object_store": f"s3://{BUCKET}",
            "s3_endpoint": s3,
            "s3_public_endpoint": s3,
            "s3_access_key": KEY,
            "s3_secret_key": SECRET,
            "work_dir": str(scratch),
            "max_checkpoint_bytes": str(64 * GIB),
            "device": "cpu",
        }
        environment = {f"EXPUNGE_{name.upper()}": value for name, value in given.items()}
        server = [rclone, "serve", "s3", str(folder / "store"), "--addr", s3[7:]]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        url, users = f"http://{HOST}:{port}", _users(database_url, architectures)
        with ExitStack() as ends:

            def kept(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
                ends.callback(process.wait)
                ends.callback(process.terminate)
                return process

            kept(subprocess.Popen([*server, "--auth-key", f"{KEY},{SECRET}"], **quiet))
            command = [sys.executable, str(WORKER)]
            worker = kept(subprocess.Popen(command, env={**os.environ, **environment}))
            api = kept(_api(folder, environment, url))
            _ready(url, api)
            run = Run(folder, environment, url, api=api, worker=worker, **users)
            yield run
            kept(run.api)


def _api(folder: Path, environment: Mapping[str, str], url: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "expunge.api",
        "--host",
        HOST,
        "--port",
        url.rpartition(":")[2],
    ]
    with (folder / "api.log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)


def _ready(url: str, api: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and api.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(LOOK_SECONDS)
    raise SystemExit("the api does not start")


def _users(database_url: str, architectures: Sequence[str]) -> dict[str, Any]:
    engine = connect(database_url)
    with sessions(engine).begin() as session:
        owner = parties.create_party(session, "lab", Role.MODEL_OWNER, actor="benchmark")
        issued = parties.issue_key(session, owner.id, expires_in_days=1, actor="benchmark")
        dataset = datasets.create(session, owner, "images")
        session.flush()
        move(session, dataset, "sealing")
        move(session, dataset, "sealed", digest="sha256:0", index_key="none", samples=1)
        ids = {
            each: models.create(
                session,
                owner,
                name=each,
                encoder=spec_of(each),
                policy=Policy(),
                control_dataset_id=None,
            ).id
            for each in dict.fromkeys(architectures)
        }
        made = {"key": issued.secret, "dataset_id": dataset.id, "models": ids}
    engine.dispose()
    return made
