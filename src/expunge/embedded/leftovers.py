"""Remembers which processes a stack started, so that the next one ends those that outlived it."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies

from expunge.embedded.processes import Child

END_TIMEOUT_SECONDS = 30.0


def remember(path: Path, children: Iterable[Child]) -> None:
    """Write the running children down: ids are reused, so the start time goes with them.

    Raises:
        OSError: the file cannot be written; what it said before still stands there.
    """
    recorded = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(child.pid).create_time()
            recorded.append({"name": child.name, "pid": child.pid, "started": started})
    part = path.with_suffix(".part")
    part.write_text(json.dumps(recorded))
    part.replace(path)


def end_remembered(path: Path) -> None:
    """End what is written down and still runs, children included; harmless when nothing does."""
    if not path.exists():
        return
    families = [
        _family(int(entry["pid"]), float(entry["started"]))
        for entry in json.loads(path.read_text() or "[]")
    ]
    for family in families:
        for process in family[:1]:
            _signal(process, kill=False)
    everyone = [process for family in families for process in family]
    _, stubborn = psutil.wait_procs(everyone, timeout=END_TIMEOUT_SECONDS)
    for process in stubborn:
        _signal(process, kill=True)
    psutil.wait_procs(stubborn, timeout=END_TIMEOUT_SECONDS)
    path.unlink()


def _family(pid: int, started: float) -> list[psutil.Process]:
    """The process, then its descendants; nothing if the id belongs to another process by now."""
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
