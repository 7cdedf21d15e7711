"""Secrets are nowhere in what the service prints, whatever goes wrong: keys, passwords, credentials of the store."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url
from tests.api.test_hardening import PROTECTING
from tests.conftest import text_of

from expunge.registry import parties
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.tables import Role

START_SECONDS = 120
DATABASE_PASSWORD = "database-password-5f1c"
REDIS_PASSWORD = "redis-password-77aa"
ACCESS_KEY, SECRET_KEY = "ACCESSKEY8D2E", "s3-secret-key-90b1"
WRONG_KEY = "xpk_wrong-key-that-somebody-mistyped-31d7"
SECRETS = (DATABASE_PASSWORD, REDIS_PASSWORD, SECRET_KEY, ACCESS_KEY, WRONG_KEY)
DIGEST = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@dataclass
class Running:
    """The api as operators start it, with an object store that is not there."""

    url: str
    log: Path
    folder: Path
    process: "subprocess.Popen[bytes]"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def running(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    settings = {
        "DATABASE_URL": text_of(make_url(database_url).set(password=DATABASE_PASSWORD)),
        "REDIS_URL": f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0",
        "OBJECT_STORE": "s3://bucket",
        "S3_ENDPOINT": "http://127.0.0.1:1",
        "S3_PUBLIC_ENDPOINT": "http://127.0.0.1:1",
        "S3_ACCESS_KEY": ACCESS_KEY,
        "S3_SECRET_KEY": SECRET_KEY,
        "WORK_DIR": str(folder / "work"),
    }
    environment = os.environ | {f"EXPUNGE_{name}": value for name, value in settings.items()}
    port = free_port()
    command = [sys.executable, "-m", "expunge.api", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        found = Running(f"http://127.0.0.1:{port}", folder / "log", folder, process)
        try:
            _wait(found)
            yield found
        finally:
            process.terminate()
            process.wait()


def _wait(running: Running) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert running.process.poll() is None, running.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{running.url}/healthz", trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("the api does not start")


@pytest.fixture(scope="module")
def key(session_factory: Sessions) -> str:
    with session_factory.begin() as session:
        party = parties.create_party(session, "Ada", Role.DATA_OWNER, actor="test")
        issued = parties.issue_key(session, party.id, expires_in_days=1, actor="test")
    assert issued.secret is not None
    return issued.secret


def test_no_secret_is_in_the_log_or_an_answer(running: Running, key: str) -> None:
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as http:
        mine = {"Authorization": f"Bearer {key}"}
        wrong = {"Authorization": f"Bearer {WRONG_KEY}"}
        dataset = http.post("/datasets", json={"name": "photos"}, headers=mine).json()["id"]
        shard = f"/datasets/{dataset}/shards/a.tar"
        upload = mine | {"Content-Digest": DIGEST}
        answers = [
            http.get("/me", headers=mine),
            http.get("/me", headers=wrong),
            http.get("/me", headers={"Authorization": WRONG_KEY}),
            http.get("/me", params={"key": WRONG_KEY}),
            http.get("/datasets/none", headers=mine, params={"key": key}),
            http.post("/datasets", json={"name": 1, "key": key}, headers=mine),
            http.put(shard, content=b"", headers=upload),
            http.get("/readyz"),
        ]
        announced = {"name": "b.tar", "bytes": 1024, "sha256": "0" * 64}
        uploads = f"/datasets/{dataset}/uploads"
        signed = http.post(uploads, json=announced, headers=mine).json()
        answers.append(http.post(f"{uploads}/{signed['id']}/complete", headers=mine))
        # What nobody foresees: the folder of uploads is gone.
        (running.folder / "work").rename(running.folder / "gone")
        answers.append(http.put(shard, content=b"", headers=upload))
    assert answers[-1].status_code == 500
    for answer in answers:
        assert PROTECTING.items() <= dict(answer.headers).items(), "whatever happens"
    running.process.terminate()
    running.process.wait()
    told = running.log.read_text()
    assert "calls are counted per process" in told
    assert "Traceback" in told
    (signature,) = parse_qs(urlsplit(signed["url"]).query)["X-Amz-Signature"]
    for secret in (*SECRETS, key, signature):
        assert secret not in told, secret
    for answer in answers:
        for secret in (DATABASE_PASSWORD, REDIS_PASSWORD, SECRET_KEY, ACCESS_KEY, key):
            assert secret not in answer.text + str(answer.headers), secret


def test_settings_do_not_show_theirs() -> None:
    settings = Settings(
        database_url=f"postgresql+psycopg://expunge:{DATABASE_PASSWORD}@db/expunge",
        redis_url=f"redis://:{REDIS_PASSWORD}@redis:6379/0",
        object_store="s3://bucket",
        s3_access_key=ACCESS_KEY,
        s3_secret_key=SECRET_KEY,  # type: ignore[arg-type]  # as the environment gives it
        metrics_token=WRONG_KEY,  # type: ignore[arg-type]
    )
    shown = repr(settings) + str(settings)
    assert [secret for secret in SECRETS if secret in shown] == []


def test_nor_does_a_complaint_about_them() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(
            database_url="postgresql+psycopg:///none",
            object_store="file:///x",
            s3_secret_key=[SECRET_KEY],  # type: ignore[arg-type]
        )
    assert SECRET_KEY not in str(refused.value)
