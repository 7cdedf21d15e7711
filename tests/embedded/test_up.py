"""`expunge up` as users meet it: a process in the foreground that is stopped, killed, started again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from expunge.client import Client
from expunge.embedded.stack import Stack, StackError

START_SECONDS = 120
ROLES = ("dispatch", "interactive", "train")
EXPUNGE = (sys.executable, "-c", "from expunge.cli import app; app()")


@dataclass
class Up:
    """A running `expunge up` and what it has printed."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def url(self) -> str:
        return re.findall(r"Ready after .* s at (http\S+)", self.text)[-1]


def start(state: Path, output: Path) -> Up:
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*EXPUNGE, "up", "--state", str(state), "--port", "0"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": "200"},
        )
    up = Up(process, output)
    deadline = time.monotonic() + START_SECONDS
    while "Ctrl-C stops everything" not in up.text:
        assert process.poll() is None, up.text
        assert time.monotonic() < deadline, up.text
        time.sleep(0.05)
    return up


@dataclass
class Facts:
    """What happened to one state folder over two lives."""

    first: str = ""
    signing_key: bytes = b""
    metrics: str = ""
    checks: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    orphans: int = 0
    second: str = ""
    parties: tuple[str, ...] = ()
    restarted: bool = False
    stopped: int | None = None
    left: int = -1
    folder: Path = Path()


@pytest.fixture(scope="module")
def facts() -> Iterator[Facts]:
    with tempfile.TemporaryDirectory(prefix="expunge-tests-") as name:
        folder = Path(name)
        state = folder / "state"
        found = Facts(folder=state)
        first = start(state, folder / "first.txt")
        found.first = first.text
        found.signing_key = (state / "signing-key.pem").read_bytes()
        secret = json.loads((state / "operator.json").read_text())["secret"]
        with Client(first.url, secret) as operator:
            operator.create_party("Ada", "data_owner")
        found.metrics, found.checks = seen_by_an_operator(first.url, secret)
        found.refused = second_up(state)
        first.process.kill()
        first.process.wait()
        found.orphans = len(processes_of(state))

        second = start(state, folder / "second.txt")
        with Client(second.url, secret) as operator:
            found.parties = tuple(party.name for party in operator.parties())
        killed = dispatcher_of(state)
        assert killed is not None
        killed.kill()
        deadline = time.monotonic() + 30
        while not found.restarted and time.monotonic() < deadline:
            time.sleep(0.05)
            # It is told after it was done; a stop in between would cut that short.
            told = "starting it again" in second.text
            found.restarted = told and dispatcher_of(state) not in (None, killed)
        second.process.send_signal(signal.SIGTERM)
        found.stopped = second.process.wait(60)
        found.second = second.text
        found.left = len(processes_of(state))
        yield found


def live_roles(metrics: str) -> tuple[str, ...]:
    return tuple(re.findall(r'expunge_workers\{role="(\w+)",state="live"\} [1-9]', metrics))


def seen_by_an_operator(url: str, secret: str) -> tuple[str, dict[str, str]]:
    """What /metrics tells once all processes are there, and what /readyz checks."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        bearer = {"Authorization": f"Bearer {secret}"}
        told = httpx.get(f"{url}/metrics", headers=bearer, trust_env=False).text
        if live_roles(told) == ROLES or time.monotonic() > deadline:
            checks = httpx.get(f"{url}/readyz", trust_env=False).json()["checks"]
            return told, checks
        time.sleep(0.5)


def dispatcher_of(state: Path) -> psutil.Process | None:
    return next((p for p in processes_of(state) if "dispatch" in p.info["cmdline"]), None)


def second_up(state: Path) -> str:
    command = [*EXPUNGE, "up", "--state", str(state), "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    return " ".join(refused.stderr.split())


def processes_of(state: Path) -> list[psutil.Process]:
    """Processes of the stack over this state, by environment or command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        told = " ".join(process.info["cmdline"] or [])
        told += (process.info["environ"] or {}).get("EXPUNGE_WORK_DIR", "")
        if str(state) in told:
            found.append(process)
    return found


def test_an_operator_sees_all_processes_and_what_they_need(facts: Facts) -> None:
    assert live_roles(facts.metrics) == ROLES
    assert re.search(
        r'^expunge_http_requests_total\{.*route="/parties"', facts.metrics, re.MULTILINE
    )
    assert "expunge_job_attempts" not in facts.metrics, "workers tell theirs themselves"
    # The disk of whoever runs the tests may be small.
    assert set((facts.checks | {"work_dir": "ok"}).values()) == {"ok"}


def test_the_first_start_says_where_it_listens_and_prints_the_key_once(facts: Facts) -> None:
    secret = json.loads((facts.folder / "operator.json").read_text())["secret"]
    assert secret in facts.first
    assert str(facts.folder / "logs") in facts.first
    assert secret not in facts.second
    assert all(secret not in log.read_text() for log in (facts.folder / "logs").iterdir())


def test_the_key_that_signs_the_record_is_made_once_and_nobody_else_can_read_it(
    facts: Facts,
) -> None:
    path = facts.folder / "signing-key.pem"
    assert path.read_bytes() == facts.signing_key
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_stacks_never_share_a_state_folder(facts: Facts) -> None:
    assert "is in use by process" in facts.refused


def test_nothing_is_lost_when_the_stack_is_killed(facts: Facts) -> None:
    assert facts.orphans > 0
    assert set(facts.parties) == {"operator", "Ada"}


def test_a_dead_process_is_started_again_and_costs_one_line(facts: Facts) -> None:
    assert facts.restarted
    line = "The dispatcher ended (signal SIGKILL); starting it again."
    assert facts.second.splitlines().count(line) == 1
    assert line in (facts.folder / "logs" / "restarts.log").read_text()


def test_a_stop_leaves_nothing_running(facts: Facts) -> None:
    assert facts.stopped == 0
    assert "Stopped; everything is kept" in facts.second
    assert facts.left == 0


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} of 127.0.0.1 cannot be used"):
            Stack(tmp_path, port).__enter__()
    assert not (tmp_path / "postgres").exists()
