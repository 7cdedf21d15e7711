"""A stack all of whose processes are killed: what comes back, what is kept, and when it gives up."""

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from tests.embedded.test_up import processes_of
from typer.testing import CliRunner

from expunge.cli import app
from expunge.client import Client
from expunge.embedded.demonstration.command import SAMPLE_FOLDER
from expunge.embedded.processes import Child, ProcessFailedError
from expunge.embedded.restarts import RestartPolicy
from expunge.embedded.stack import Stack, StackError
from expunge.registry.settings import Settings

NAMES = ["postgres", "redis", "api", "api-1", "dispatch", "train-0", "train-1", "interactive"]
CALLS = 6
COUNTED = re.compile(
    r'^expunge_http_requests_total\{[^}]*route="/methods"[^}]*\} (\S+)', re.MULTILINE
)


@dataclass
class Facts:
    """What happened to one stack."""

    names: list[str]
    environment: dict[str, str]
    """Of the second train worker."""
    api_lease_seconds: str
    told: list[str]
    """About the killed processes."""
    before: dict[str, int]
    after: dict[str, int]
    remembered: set[int]
    sealed: str
    """The state of a data set that was made before and sealed after the kills."""
    log: str
    given_up: str
    left: int
    counted: set[float]
    """Calls of one route, as scrapes that any api process may have answered told of them."""


@pytest.fixture(scope="module")
def facts() -> Iterator[Facts]:
    with tempfile.TemporaryDirectory(prefix="expunge-tests-") as name:
        state = Path(name) / "state"
        stack = Stack(
            state,
            port=0,
            devices=("cpu", "auto"),
            api_processes=2,
            extra={"EXPUNGE_LEASE_SECONDS": "7"},
            restarts=RestartPolicy(longest_pause_seconds=0.1),
        )
        with stack:
            operator = Client(stack.url, stack.operator.secret)
            ada = operator.create_party("Ada", "data_owner")
            owner = Client(stack.url, operator.create_key(ada.id).secret)
            with operator, owner:
                counted = scraped(stack)
                dataset = owner.create_dataset("photos")
                owner.upload_shard(dataset.id, SAMPLE_FOLDER / "owner_a.tar")
                before = stack.processes
                told = killed(stack, list(before))
                while not stack.is_ready():
                    told += [str(ending) for ending in stack.revive()]
                    time.sleep(0.05)
                sealed = owner.seal(dataset.id).state
            after = stack.processes
            remembered = json.loads((state / "processes.json").read_text())
            worker = psutil.Process(after["train-1"].pid).environ()
            api = psutil.Process(after["api"].pid).environ()
            given_up = crash_loop(stack, state)
        yield Facts(
            names=list(before),
            environment=worker,
            api_lease_seconds=api["EXPUNGE_LEASE_SECONDS"],
            told=told,
            before=pids(before),
            after=pids(after),
            remembered={entry["pid"] for entry in remembered},
            sealed=sealed,
            log=(state / "logs" / "restarts.log").read_text(),
            given_up=given_up,
            left=len(processes_of(state)),
            counted=counted,
        )


def scraped(stack: Stack) -> set[float]:
    """What eight scrapes, each over a connection of its own, tell of six earlier calls."""
    headers = {"Authorization": f"Bearer {stack.operator.secret}"}
    for _ in range(CALLS):
        httpx.get(f"{stack.url}/methods", trust_env=False).raise_for_status()
    deadline = time.monotonic() + 30
    while True:
        texts = [
            httpx.get(f"{stack.url}/metrics", headers=headers, trust_env=False).text
            for _ in range(8)
        ]
        found = {float(each) for text in texts for each in COUNTED.findall(text)}
        # A call is counted once its answer is out, which its caller may have read by then.
        if found == {CALLS} or time.monotonic() > deadline:
            return found


def killed(stack: Stack, names: list[str]) -> list[str]:
    """What the stack tells when it notices that all of these were killed."""
    children = [stack.processes[name] for name in names]
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    for child in children:
        child.process.wait(10)
    return [str(ending) for ending in stack.revive()]


def crash_loop(stack: Stack, state: Path) -> str:
    """Why the stack gives up a PostgreSQL that cannot start any more."""
    (state / "postgres" / "data" / "postgresql.conf").write_text("no such setting = 1\n")
    killed(stack, ["postgres"])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            stack.revive()
        except ProcessFailedError as failure:
            return str(failure)
        time.sleep(0.02)
    return "it did not give up"


def pids(processes: dict[str, Child]) -> dict[str, int]:
    return {name: child.pid for name, child in processes.items()}


def test_every_process_has_a_stable_name_and_there_is_a_train_worker_per_device(
    facts: Facts,
) -> None:
    assert facts.names == NAMES
    assert list(facts.after) == NAMES
    assert facts.environment["EXPUNGE_DEVICE"] == "auto"


def test_every_api_process_tells_what_all_of_them_counted(facts: Facts) -> None:
    assert facts.counted == {CALLS}


def test_further_settings_reach_the_services(facts: Facts) -> None:
    assert facts.api_lease_seconds == facts.environment["EXPUNGE_LEASE_SECONDS"] == "7"


def test_killed_processes_come_back_and_the_work_goes_on(facts: Facts) -> None:
    assert not set(facts.before.values()) & set(facts.after.values())
    assert facts.sealed == "sealed"


def test_one_line_is_told_and_logged_about_each_killed_process(facts: Facts) -> None:
    assert len(facts.told) == len(NAMES)
    assert "The worker train-1 ended (signal SIGKILL); starting it again." in facts.told
    assert all(line in facts.log for line in facts.told)


def test_the_restarted_processes_are_the_ones_a_next_stack_would_end(facts: Facts) -> None:
    assert facts.remembered == set(facts.after.values())


def test_a_process_that_cannot_start_any_more_is_given_up_with_its_last_words(
    facts: Facts,
) -> None:
    assert "PostgreSQL ended 5 times in a row right after its start" in facts.given_up
    assert "syntax error" in facts.given_up
    assert facts.given_up.splitlines()[0] in facts.log
    assert facts.left == 0


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "gpu", "cuda:", "cpu:0", ""])
def test_the_stack_takes_the_devices_that_the_services_take(device: str, tmp_path: Path) -> None:
    try:
        Settings(database_url="postgresql://", object_store="file:///", device=device)
    except ValueError:
        with pytest.raises(StackError, match="is no device: auto, cpu, cuda, or one of several"):
            Stack(tmp_path, devices=["cpu", device])
    else:
        Stack(tmp_path, devices=["cpu", device])


def test_a_wrong_device_is_said_before_anything_is_made(tmp_path: Path) -> None:
    state = tmp_path / "state"
    answer = CliRunner().invoke(app, ["up", "--state", str(state), "--device", "gpu"])
    assert answer.exit_code == 1
    assert "'gpu' is no device" in answer.output
    assert not state.exists()
