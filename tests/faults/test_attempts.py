"""Attempts that end before their job does: killed, paused, stopped, cancelled, or killed every time."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tests.faults.proxy import Mode
from tests.faults.records import read
from tests.faults.reference import digest_recorded, digest_undisturbed
from tests.faults.rig import Rig, command_of, is_live
from tests.faults.users import Cast, Removal

MEASURED_SAMPLES = 256
"""So many that a result is measured for longer than it takes to notice that; they make an epoch longer too."""
PATIENCE_SECONDS = 30.0
"""What ends at once on a free core ends within this on a machine that other tests share, or hangs."""


def child_of(rig: Rig, job_id: str) -> psutil.Process:
    """The training process of the job, as soon as there is one."""

    def found() -> psutil.Process | None:
        name = rig.trainer_of(job_id)
        return next(iter(rig.training(name)), None)

    return rig.eventually(found, f"{job_id} has a training process")


def until_evaluating(rig: Rig, job_id: str) -> None:
    rig.eventually(lambda: rig.job(job_id)["state"] == "evaluating", f"{job_id} is measured")


def test_a_training_process_killed_in_every_phase_ends_with_the_weights_of_an_undisturbed_run(
    rig: Rig, cast: Cast, weights: Path, tmp_path: Path
) -> None:
    many = cast.dataset(cast.model_owner, "many", MEASURED_SAMPLES)
    cast.until_sealed(cast.model_owner)
    job_id = cast.removal_of(cast.model(weights=weights, more=[many]), seconds=0.4).job_id
    child_of(rig, job_id).kill()
    rig.eventually(lambda: rig.job(job_id)["attempt"] == 2, "a second attempt")
    first = rig.until_snapshot(job_id)["snapshot_step"]
    child_of(rig, job_id).kill()
    rig.eventually(lambda: rig.job(job_id)["attempt"] == 3, "a third attempt")
    assert rig.job(job_id)["snapshot_step"] >= first
    child = child_of(rig, job_id)
    until_evaluating(rig, job_id)
    child.kill()
    job = rig.until_ended(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 4)
    assert digest_recorded(rig, job_id) == digest_undisturbed(rig, job_id, tmp_path)


def test_a_worker_paused_past_its_lease_writes_nothing_when_it_goes_on(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    job_id = cast.removal(weights, seconds=1).job_id
    rig.until_snapshot(job_id)
    worker = rig.process(rig.trainer_of(job_id))
    worker.send_signal(signal.SIGSTOP)
    try:
        rig.eventually(lambda: rig.job(job_id)["attempt"] == 2, "another worker takes the job")
        job = rig.until_ended(job_id)
        rig.until_rest()
        before = everything(rig)
    finally:
        worker.send_signal(signal.SIGCONT)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    assert not job["worker"].startswith(f"train-{worker.pid}.")
    rig.eventually(lambda: not worker.children(), "its training process is ended")
    name = next(n for n, child in rig.stack.processes.items() if child.pid == worker.pid)
    log = rig.state / "logs" / f"{name}.log"
    rig.eventually(lambda: "lease lost" in last_of(log, job_id), "the worker knows")
    assert everything(rig) == before


def everything(rig: Rig) -> tuple[str, frozenset[str]]:
    """All rows and all objects; a sweep may take away what a lost attempt left."""
    records = read(rig.engine, list(rig.store.keys()))
    named = frozenset(key for key in records.objects if not key.startswith("snapshots/"))
    return records.text(without=["clock", "pending_objects", "workers"]), named


def last_of(log: Path, job_id: str) -> str:
    lines = [line for line in log.read_text().splitlines() if job_id in line]
    return lines[-1] if lines else ""


def test_a_stopped_worker_gives_the_job_back_within_its_grace_and_the_next_goes_on(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    job_id = cast.removal(weights, seconds=5).job_id
    rig.until_snapshot(job_id)
    child = rig.stack.processes[rig.trainer_of(job_id)]
    child.process.terminate()
    assert child.process.wait(PATIENCE_SECONDS) == 0
    given_back = next(row for row in rig.log(job_id)[2:] if row["event"] == "queued")
    assert given_back["detail"]["reason"] == "its worker was stopped"
    step = rig.job(job_id)["snapshot_step"]
    job = rig.until_ended(job_id)
    assert (job["state"], job["attempt"], job["failure"]) == ("succeeded", 2, None)
    assert step > 0


def test_a_job_whose_process_dies_every_time_fails_with_its_reason(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    removal = cast.removal(weights, seconds=60)
    with killed_on_sight(rig, removal.job_id) as killed:
        job = rig.until_ended(removal.job_id)
    assert (job["state"], job["attempt"], len(killed)) == ("failed", 3, 3)
    assert job["failure"]["kind"] == "signal"
    assert job["failure"]["attempt"] == 3
    assert "the training process was ended by SIGKILL" in job["reason"]
    request = removal.owner.get(f"/requests/{removal.request_id}")
    assert request["state"] == "failed"
    assert "it is not tried again" in request["reason"]
    crashes = [row["detail"] for row in rig.log(removal.job_id) if row["event"] == "queued"][1:]
    assert [detail["kind"] for detail in crashes] == ["signal", "signal"]


@contextmanager
def killed_on_sight(rig: Rig, job_id: str) -> Iterator[set[int]]:
    """While the block runs, each training process of the job dies before its first step."""
    killed: set[int] = set()
    done = threading.Event()

    def hunt() -> None:
        while not done.wait(0.02):
            for child in rig.training():
                if any(job_id in part for part in command_of(child)) and child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        yield killed
    finally:
        done.set()
        hunter.join()


def cancelled_soon(rig: Rig, cast: Cast, removal: Removal) -> None:
    """Cancel, and see the training process gone and the worker free; the head stays."""
    head = cast.head(removal.model_id)
    name = rig.trainer_of(removal.job_id)
    cast.model_owner.call("POST", f"/jobs/{removal.job_id}/cancel", json={"reason": "a mistake"})
    assert not is_live(rig.job(removal.job_id))
    log = rig.state / "logs" / f"{name}.log"
    rig.eventually(
        lambda: not rig.training(name) and "lease lost" in last_of(log, removal.job_id),
        "the worker is free",
        seconds=PATIENCE_SECONDS,
    )
    request = removal.owner.get(f"/requests/{removal.request_id}")
    assert request["state"] == "cancelled"
    assert "a mistake" in request["reason"]
    assert cast.head(removal.model_id) == head


def test_a_job_is_cancelled_while_it_waits_for_its_files(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    model_id = cast.model(weights=weights)
    assert rig.proxy is not None
    with rig.proxy.failing(Mode.REFUSE):
        removal = cast.removal_of(model_id, seconds=60)
        log = rig.state / "logs" / f"{rig.trainer_of(removal.job_id)}.log"
        rig.eventually(lambda: "waiting for a store" in last_of(log, removal.job_id), "it waits")
        cancelled_soon(rig, cast, removal)


def test_a_job_is_cancelled_while_it_trains(rig: Rig, cast: Cast, weights: Path) -> None:
    removal = cast.removal(weights, seconds=60)
    rig.until_snapshot(removal.job_id)
    cancelled_soon(rig, cast, removal)


def test_a_job_is_cancelled_while_its_result_waits_for_the_store(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    removal = cast.removal(weights, seconds=0.5)
    child_of(rig, removal.job_id)
    assert rig.proxy is not None
    with rig.proxy.failing(Mode.REFUSE):
        until_evaluating(rig, removal.job_id)
        rig.eventually(lambda: not rig.training(), "the training process has ended")
        cancelled_soon(rig, cast, removal)
    assert rig.rows("SELECT id FROM checkpoints WHERE job_id = :id", id=removal.job_id) == []
