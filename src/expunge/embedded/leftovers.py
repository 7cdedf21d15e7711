"""Remembers which processes a stack started, so that the next one ends those that outlived it."""

import json
from collections.abc import Iterable
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies

from expunge.embedded.processes import Child

END_TIMEOUT_SECONDS = 10.0


def remember(path: Path, children: Iterable[Child]) -> None:
    """Write the running children down: ids are reused, so the start time goes with them."""
    recorded = [
        {"name": child.name, "pid": child.pid, "started": psutil.Process(child.pid).create_time()}
        for child in children
        if child.process.poll() is None
    ]
    path.write_text(json.dumps(recorded))


def end_remembered(path: Path) -> None:
    """End what is written down and still runs, children included; harmless when nothing does."""
    if not path.exists():
        return
    running = [
        process
        for entry in json.loads(path.read_text() or "[]")
        for process in _family(int(entry["pid"]), float(entry["started"]))
    ]
    for process in running:
        _signal(process, kill=False)
    _, stubborn = psutil.wait_procs(running, timeout=END_TIMEOUT_SECONDS)
    for process in stubborn:
        _signal(process, kill=True)
    psutil.wait_procs(stubborn, timeout=END_TIMEOUT_SECONDS)
    path.unlink()


def _family(pid: int, started: float) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        if process.create_time() != started:
            return []
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return
