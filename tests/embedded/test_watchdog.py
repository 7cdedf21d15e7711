"""Waiting for work ends when a process that should do it is dead."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.embedded.processes import Child, ProcessFailedError, start_child
from expunge.embedded.stack import Stack
from expunge.embedded.watchdog import watched


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "ignored"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """SIGINT as in a terminal, and as a shell leaves it to a command in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    assert signal.signal(signal.SIGINT, before) == request.param


@pytest.mark.usefixtures("interrupts")
def test_a_dead_process_ends_a_long_wait_with_its_last_words(tmp_path: Path) -> None:
    stack = Stack(tmp_path, port=0)
    script = "import sys; sys.exit('the disk is full')"

    def start() -> Child:
        command = [sys.executable, "-c", script]
        return start_child("The train worker", command, tmp_path / "train.log")

    stack._keep("train-0", start(), start)
    started = time.monotonic()
    with (
        pytest.raises(ProcessFailedError, match=r"(?s)train worker ended.*the disk is full"),
        watched(stack),
    ):
        time.sleep(60)
    assert time.monotonic() - started < 30


def test_a_stop_by_the_user_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), watched(Stack(tmp_path, port=0)):
        raise KeyboardInterrupt
