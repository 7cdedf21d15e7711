"""Processes that end are started again, ever more slowly, and not for ever."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.embedded.processes import Child, ProcessFailedError, start_child
from expunge.embedded.restarts import Ending, Kept, RestartPolicy

ENDLESS = RestartPolicy(
    first_pause_seconds=0.02, longest_pause_seconds=0.05, steady_seconds=60, hopeless_after=10**6
)
FULL_DISK = "import sys; sys.exit('the disk is full')"


def kept(folder: Path, script: str, policy: RestartPolicy) -> Kept:
    def start() -> Child:
        return start_child("The worker", [sys.executable, "-c", script], folder / "worker.log")

    return Kept("worker", start(), start, policy)


def revived(process: Kept, until: Callable[[list[Ending]], bool]) -> list[Ending]:
    """What reviving again and again tells until the condition holds."""
    endings: list[Ending] = []
    deadline = time.monotonic() + 30
    while not until(endings):
        assert time.monotonic() < deadline
        endings += process.revive()
        time.sleep(0.005)
    return endings


def test_pauses_double_up_to_the_longest(tmp_path: Path) -> None:
    endings = revived(kept(tmp_path, FULL_DISK, ENDLESS), lambda found: len(found) == 6)
    assert [ending.pause_seconds for ending in endings] == [0, 0.02, 0.04, 0.05, 0.05, 0.05]
    assert str(endings[0]) == "The worker ended (exit status 1); starting it again."
    assert str(endings[2]).endswith("starting it again in 0.04 s.")


def test_nothing_starts_before_its_pause_is_over(tmp_path: Path) -> None:
    process = kept(tmp_path, FULL_DISK, RestartPolicy(first_pause_seconds=60))
    revived(process, lambda found: len(found) == 2)
    last = process.child.pid
    assert process.revive() == []
    assert process.child.pid == last


def test_a_process_that_ran_for_long_starts_again_without_a_pause(tmp_path: Path) -> None:
    policy = RestartPolicy(steady_seconds=0.2, at_once_seconds=0.2, hopeless_after=2)
    process = kept(tmp_path, "import time; time.sleep(0.25)", policy)
    endings = revived(process, lambda found: len(found) == 3)
    assert [ending.pause_seconds for ending in endings] == [0, 0, 0]
    process.child.stop()


def test_a_process_that_ends_at_once_five_times_is_given_up_with_its_last_words(
    tmp_path: Path,
) -> None:
    policy = RestartPolicy(first_pause_seconds=0.01)
    process = kept(tmp_path, FULL_DISK, policy)
    words = r"(?s)The worker ended 5 times in a row .*\(exit status 1\).*the disk is full"
    with pytest.raises(ProcessFailedError, match=words):
        revived(process, lambda _: False)
    assert (tmp_path / "worker.log").read_text().count("the disk is full") == 5


def test_ends_of_different_kinds_are_not_hopeless(tmp_path: Path) -> None:
    policy = RestartPolicy(first_pause_seconds=0.01, longest_pause_seconds=0.01, hopeless_after=2)
    script = (
        f"from pathlib import Path; import sys; runs = Path({str(tmp_path / 'runs')!r})\n"
        "count = len(runs.read_text()) if runs.exists() else 0\n"
        "runs.write_text('x' * (count + 1)); sys.exit(count % 2)\n"
    )
    endings = revived(kept(tmp_path, script, policy), lambda found: len(found) == 6)
    assert [ending.how for ending in endings] == ["exit status 0", "exit status 1"] * 3


def test_a_process_that_cannot_be_started_is_tried_again_until_hopeless(tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    def start() -> Child:
        return start_child("The worker", [str(missing)], tmp_path / "worker.log")

    first = start_child("The worker", [sys.executable, "-c", "0"], tmp_path / "worker.log")
    process = Kept("worker", first, start, RestartPolicy(first_pause_seconds=0.01))
    with pytest.raises(ProcessFailedError, match=r"5 times in a row .*No such file or directory"):
        revived(process, lambda _: False)
