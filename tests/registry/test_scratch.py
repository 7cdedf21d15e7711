"""Scratch folders: those of dead processes go, those of live ones stay."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from expunge.registry.scratch import UNLOCKED_SECONDS, Scratch, remove_abandoned

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


def test_a_folder_without_lock_is_given_time(tmp_path: Path) -> None:
    starting = tmp_path / "process-starting"
    starting.mkdir()
    remove_abandoned(tmp_path)
    assert starting.exists()
    long_ago = time.time() - UNLOCKED_SECONDS - 1
    os.utime(starting, (long_ago, long_ago))
    remove_abandoned(tmp_path)
    assert not starting.exists()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "oracles").mkdir()
    Scratch(tmp_path).close()
    assert (tmp_path / "oracles").exists()
