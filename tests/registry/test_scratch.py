"""Scratch folders: those of dead processes go, those of live ones stay."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.registry.scratch import Scratch, remove_abandoned

HOLD = """
import sys, time
from pathlib import Path
from expunge.registry.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.path / "image.png").write_bytes(b"somebody's")
print(scratch.path, flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_its_folder_to_the_next_one(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        folder = Path(output.readline().strip())
    own = Scratch(tmp_path)
    assert (folder / "image.png").exists(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    another = Scratch(tmp_path)
    assert not folder.exists()
    assert own.path.exists()
    own.close()
    another.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_lock_is_of_a_process_that_died_while_it_was_starting(
    tmp_path: Path,
) -> None:
    (tmp_path / "process-starting").mkdir()
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_starts_is_left_alone_by_others_who_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step of it they come between."""
    others: list[threading.Thread] = []
    started: list[Scratch] = []

    def between(step: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*given: Any, **named: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                others.append(threading.Thread(target=lambda: started.append(Scratch(tmp_path))))
                others[-1].start()
                others[-1].join(timeout=0.05)
            return step(*given, **named)

        return taken

    with monkeypatch.context() as patch:
        for module, name in ((tempfile, "mkdtemp"), (os, "open"), (fcntl, "flock")):
            patch.setattr(module, name, between(getattr(module, name)))
        started.append(Scratch(tmp_path))
    for other in others:
        other.join()
    assert len(started) == len(others) + 1 > 3
    for each in started:
        assert each.path.exists()
        each.close()
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "oracles").mkdir()
    Scratch(tmp_path).close()
    assert (tmp_path / "oracles").exists()
