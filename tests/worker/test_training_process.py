"""Real training processes: killed, stopped, resumed, out of memory, without a supervisor."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pytest
import torch
from safetensors import SafetensorError
from tests.worker.lab import ENCODER, MOCO, WAIT_SECONDS, eventually, images

from expunge.formats.digests import sha256_file
from expunge.formats.shards import write_shard
from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import EncoderSpec, Supervised
from expunge.unlearning.catalog import MoCo as MoCoObjective
from expunge.unlearning.data.image_set import load_for
from expunge.unlearning.frameworks import build
from expunge.unlearning.metrics.contrastive_accuracy import contrastive_accuracy
from expunge.worker.task import STOPPED_STATUS, TrainingTask, to_json
from expunge.worker.training_process import (
    AUTOGROUP,
    LAST_WORDS_CHARS,
    kind_of_crash,
)

RETAINED, UNLEARNED = 40, 12
LASTING = {"epochs": 50, "batch_size": 16}
"""150 steps: a second or two of training, with nothing else on the cores."""
SHORT = {"epochs": 2, "batch_size": 16}
OFTEN, NEVER = 0.05, 1e9
"""Seconds between two snapshots."""
ADDRESS_SPACE_BYTES = 8 << 30
"""Twice what a process with torch takes, half of the queue that is then asked for."""


class Child:
    """A training process and what it told."""

    def __init__(self, task: TrainingTask, folder: Path, niceness: int) -> None:
        task_file, self.output = folder / "task.json", folder / "output.log"
        task_file.write_text(to_json(task))
        self.messages: list[dict[str, Any]] = []
        self.pipe, write_end = os.pipe()
        with self.output.open("wb") as output:
            module = "expunge.worker.training_process"
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(task_file), str(write_end), str(niceness)],
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end],
                start_new_session=niceness > 0,
            )
        os.close(write_end)
        self.reader = threading.Thread(target=self._read, daemon=True)

    def listen(self) -> "Child":
        self.reader.start()
        return self

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["kind"] == kind]

    def wait_for(self, kind: str) -> dict[str, Any]:
        def come() -> list[dict[str, Any]]:
            assert self.process.poll() is None, self.output.read_text()
            return self.told(kind)

        eventually(come, f"the process tells {kind}")
        return self.told(kind)[0]

    def ended(self) -> int:
        status = self.process.wait(WAIT_SECONDS)
        self.reader.join(10)
        return status

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.reader.ident is not None:
            self.reader.join()

    def _read(self) -> None:
        with os.fdopen(self.pipe) as pipe:
            for line in pipe:
                if line.endswith("\n"):
                    self.messages.append(json.loads(line))


class Start(Protocol):
    def __call__(self, task: TrainingTask, *, niceness: int = 0) -> Child: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a task; what still runs at the test's end is killed."""
    with ExitStack() as stack:

        def begin(task: TrainingTask, *, niceness: int = 0) -> Child:
            child = Child(task, tmp_path, niceness)
            stack.callback(child.kill)
            return child.listen()

        yield begin


@pytest.fixture
def task(tmp_path: Path) -> TrainingTask:
    """A short pre-training of SimCLR."""
    shards = {"retain": RETAINED, "unlearn": UNLEARNED}
    for seed, (name, count) in enumerate(shards.items()):
        write_shard(tmp_path / f"{name}.tar", images(name, count, seed))
    return TrainingTask(
        encoder=ENCODER.model_dump(mode="json"),
        method=None,
        params=SHORT,
        seed=3,
        device="cpu",
        retain_shards=[str(tmp_path / "retain.tar")],
        unlearn_shards=[],
        base=None,
        result=str(tmp_path / "result.safetensors"),
        snapshot=str(tmp_path / "snapshot.safetensors"),
        snapshot_seconds=NEVER,
    )


def unlearning(task: TrainingTask, folder: Path, spec: EncoderSpec = ENCODER) -> TrainingTask:
    base = folder / "base.safetensors"
    checkpoints.save(build(spec, seed=1), base)
    return replace(
        task,
        encoder=spec.model_dump(mode="json"),
        method="alignment_calibration",
        unlearn_shards=[str(folder / "unlearn.tar")],
        base=str(base),
    )


def finished(child: Child, task: TrainingTask) -> str:
    """Wait for its good end; the digest of its result."""
    assert child.ended() == 0, child.output.read_text()
    assert len(child.told("done")) == 1
    assert not Path(task.snapshot).exists()
    digest = sha256_file(Path(task.result))
    Path(task.result).unlink()
    return digest


def test_killed_and_then_stopped_it_comes_to_the_same_bytes_as_undisturbed(
    start: Start, task: TrainingTask, tmp_path: Path
) -> None:
    # MoCo has a state of its own besides, its queue and momentum encoder.
    task = replace(unlearning(task, tmp_path, MOCO), params=LASTING, snapshot_seconds=OFTEN)
    undisturbed = finished(start(task), task)

    killed = start(task)
    killed.wait_for("snapshot")
    killed.process.send_signal(signal.SIGKILL)
    assert killed.ended() == -signal.SIGKILL
    last = killed.told("snapshot")[-1]["step"]

    stopped = start(task)
    assert stopped.wait_for("resumed")["step"] >= last
    first = stopped.wait_for("snapshot")["step"]
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.ended() == STOPPED_STATUS
    assert not stopped.told("done")
    last = stopped.told("snapshot")[-1]["step"]
    assert last > first, "the step that was under way is kept"

    resumed = start(task)
    assert resumed.wait_for("resumed")["step"] == last
    assert finished(resumed, task) == undisturbed


def test_a_stop_is_heard_before_anything_is_imported(start: Start, task: TrainingTask) -> None:
    child = start(task)
    status = Path(f"/proc/{child.process.pid}/status")

    def hears() -> bool:
        caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    eventually(hears, "the process handles SIGTERM")
    assert "libtorch" not in Path(f"/proc/{child.process.pid}/maps").read_text()
    child.process.send_signal(signal.SIGTERM)
    assert child.ended() == STOPPED_STATUS
    assert child.messages == []


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("come()", STOPPED_STATUS),
        ("stop.should_stop(); come(); sys.exit(7 if stop.should_stop() else 8)", 7),
        ("stop.should_stop(); come(); stop.steps_are_over()", STOPPED_STATUS),
        ("stop.should_stop(); stop.steps_are_over(); come()", STOPPED_STATUS),
        ("stop.should_stop(); stop.steps_are_over(); sys.exit(9)", 9),
    ],
)
def test_a_stop_waits_only_while_somebody_asks_for_it(script: str, status: int) -> None:
    prologue = (
        "import os, signal, sys; from expunge.worker.stop_signal import StopSignal;"
        "stop = StopSignal(); come = lambda: os.kill(os.getpid(), signal.SIGTERM);"
    )
    assert (
        subprocess.run([sys.executable, "-c", prologue + script], check=False).returncode == status
    )


def test_a_process_without_a_supervisor_ends(task: TrainingTask, tmp_path: Path) -> None:
    child = Child(replace(task, params=LASTING), tmp_path, 0)
    os.close(child.pipe)
    try:
        assert child.process.wait(WAIT_SECONDS) == 1
    finally:
        child.kill()
    assert "BrokenPipeError" in child.output.read_text()


def test_a_snapshot_that_does_not_fit_is_refused_once_and_the_run_starts_again(
    start: Start, task: TrainingTask
) -> None:
    whole = finished(start(task), task)
    Path(task.snapshot).write_bytes(b"not a snapshot")
    child = start(task)
    assert finished(child, task) == whole
    (refused,) = child.told("snapshot-refused")
    assert refused["reason"].startswith("the snapshot does not fit this run: it is damaged")
    assert not child.told("resumed")


def test_it_says_how_well_the_encoder_tells_images_apart(
    start: Start, task: TrainingTask, tmp_path: Path
) -> None:
    child = start(task)
    assert child.ended() == 0
    measured = child.told("done")[0]["result"]
    device = torch.device("cpu")
    retain = load_for(ENCODER, [Path(task.retain_shards[0])])
    after = checkpoints.load(Path(task.result))
    accuracy = contrastive_accuracy(after, retain, device, seed=task.seed)
    assert measured["samples"] == {"retain": RETAINED, "unlearn": 0}
    assert measured["utility"] == {
        "before": None,
        "after": pytest.approx(accuracy),
        "n": RETAINED,
        "chance": 1 / RETAINED,
    }

    task = unlearning(task, tmp_path)
    child = start(task)
    assert child.ended() == 0
    assert child.told("evaluating")
    measured = child.told("done")[0]["result"]
    before, after = (checkpoints.load(Path(str(path))) for path in (task.base, task.result))
    assert measured["samples"] == {"retain": RETAINED, "unlearn": UNLEARNED}
    assert measured["utility"] == {
        "before": pytest.approx(contrastive_accuracy(before, retain, device, seed=task.seed)),
        "after": pytest.approx(contrastive_accuracy(after, retain, device, seed=task.seed)),
        "n": RETAINED,
        "chance": 1 / RETAINED,
    }
    assert measured["evaluation"]["encoder"]["retain"]["forgetting_score"]["n"] == RETAINED


def test_it_leaves_the_cores_to_those_who_answer(start: Start, task: TrainingTask) -> None:
    child = start(replace(task, params=LASTING), niceness=3)
    child.wait_for("progress")
    assert psutil.Process(child.process.pid).nice() == psutil.Process().nice() + 3


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="sessions have no priority here")
def test_it_does_so_beside_processes_of_other_sessions(start: Start, task: TrainingTask) -> None:
    child = start(replace(task, params=LASTING), niceness=3)
    child.wait_for("progress")
    own = Path("/proc", str(child.process.pid), "autogroup").read_text()
    assert own.split() == [own.split()[0], "nice", "3"]
    assert own != AUTOGROUP.read_text(), "and leaves its supervisor's session alone"


def test_an_unexpected_error_is_told_with_its_last_words(start: Start, task: TrainingTask) -> None:
    child = start(replace(task, retain_shards=["/nowhere/at-all.tar"]))
    assert child.ended() == 1
    (crashed,) = child.messages
    assert (crashed["kind"], crashed["kind_of_crash"]) == ("crashed", "exception")
    assert crashed["words"].rstrip().endswith("'/nowhere/at-all.tar'")
    assert "FileNotFoundError" in crashed["words"]
    assert len(crashed["words"]) <= LAST_WORDS_CHARS


def test_a_run_that_cannot_work_is_no_crash(
    start: Start, task: TrainingTask, tmp_path: Path
) -> None:
    child = start(replace(unlearning(task, tmp_path), unlearn_shards=[]))
    assert child.ended() == 1
    assert child.messages == [{"kind": "failed", "reason": "the unlearn set is empty"}]

    labels = ENCODER.model_copy(update={"objective": Supervised(classes=2)})
    child = start(replace(task, encoder=labels.model_dump(mode="json")))
    assert child.ended() == 1
    (failed,) = child.messages
    assert failed["kind"] == "failed"
    assert "labels 0 to 1, but one is 9" in failed["reason"]


def test_a_process_out_of_memory_says_so(start: Start, task: TrainingTask) -> None:
    queue = MoCoObjective(projector_dim=4096, queue_size=1_048_576)
    greedy = ENCODER.model_copy(update={"objective": queue})
    child = start(replace(task, encoder=greedy.model_dump(mode="json")))
    resource.prlimit(child.process.pid, resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES,) * 2)
    assert child.ended() == 1, child.output.read_text()
    (crashed,) = child.messages
    assert (crashed["kind"], crashed["kind_of_crash"]) == ("crashed", "out-of-memory")
    assert "memory" in crashed["words"]


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (lambda: bytearray(1 << 60), "out-of-memory"),
        (lambda: np.empty(1 << 60, np.uint8), "out-of-memory"),
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "out-of-memory"),
        (lambda: torch.ones(2) @ torch.ones(3), "exception"),
        (lambda: int("x"), "exception"),
    ],
)
def test_what_memory_was_too_small_for_is_told_from_other_errors(
    cause: Callable[[], object], kind: str
) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each way has its own type
        cause()
    assert kind_of_crash(raised.value) == kind
    assert kind_of_crash(torch.OutOfMemoryError("of a device")) == "out-of-memory"


def test_a_full_disk_is_told_from_other_errors() -> None:
    assert kind_of_crash(OSError(errno.ENOSPC, "No space left on device")) == "disk-full"
    assert kind_of_crash(OSError(errno.EDQUOT, "Disk quota exceeded")) == "disk-full"
    assert kind_of_crash(OSError(errno.EACCES, "Permission denied")) == "exception"
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert kind_of_crash(SafetensorError(words)) == "disk-full"
