"""The training process: reads a task file, does the task, tells its supervisor how it goes.

Started as `python -m expunge.worker.training_process TASK_FILE PIPE_FD NICENESS`. Knows no database, no
object store and no key; what it may touch lies in one folder, and the folder of Retrain's checkpoints.
"""

import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

from expunge.worker.stop_signal import StopSignal
from expunge.worker.supervisor_pipe import Supervisor
from expunge.worker.task import NO_SPACE, STOPPED_STATUS, ComparisonTask, from_json

AUTOGROUP = Path("/proc/self/autogroup")
"""Where Linux groups processes by session, niceness counts only within a session, and this file says
what the session's own is."""
ORPHAN_CHECK_SECONDS = 1.0
OOM_SCORE = Path("/proc/self/oom_score_adj")
FIRST_TO_GO = "500"
"""Of 1,000: where memory runs out, the kernel ends this process before its worker or a database."""
LAST_WORDS_CHARS = 800
"""Of a traceback: what went wrong stands at its end."""
CPU_ALLOCATION_FAILED = "DefaultCPUAllocator: "
"""In the message of the bare RuntimeError that torch raises where the CPU's memory is used up."""


def run(task_file: Path, supervisor: Supervisor, stop: StopSignal) -> int:
    """Do what the task says; the exit status, 0 if its result is complete."""
    # Here, once signals are heard: these import torch, and a kind of task what only it needs.
    from expunge.unlearning.checkpoints import CheckpointMismatch  # noqa: PLC0415
    from expunge.unlearning.errors import TrainingError  # noqa: PLC0415
    from expunge.unlearning.progress import RunStopped  # noqa: PLC0415

    task = from_json(task_file.read_text())
    try:
        if isinstance(task, ComparisonTask):
            from expunge.worker import comparison_run  # noqa: PLC0415

            comparison_run.run(task, supervisor)
        else:
            from expunge.worker import training_run  # noqa: PLC0415

            training_run.run(task, supervisor, stop)
    except (TrainingError, CheckpointMismatch) as error:
        supervisor.tell("failed", reason=str(error))
        return 1
    except RunStopped:
        return STOPPED_STATUS
    return 0


def kind_of_crash(error: Exception) -> str:
    """`disk-full`, `out-of-memory` for the CPU's or the device's, else `exception`."""
    import torch  # noqa: PLC0415 - see `run`

    number = error.errno if isinstance(error, OSError) else None
    if number in NO_SPACE or any(f"(os error {each})" in str(error) for each in NO_SPACE):
        return "disk-full"
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return "out-of-memory" if exhausted or CPU_ALLOCATION_FAILED in str(error) else "exception"


def _end_with(supervisor_pid: int) -> None:
    """End this process when its supervisor is gone: nobody would stop it, and its device is wanted."""

    def watch() -> None:
        while os.getppid() == supervisor_pid:
            time.sleep(ORPHAN_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="orphan watch", daemon=True).start()


def _give_way(niceness: int) -> None:
    """Lower this process's priority, and that of its session if it has one of its own."""
    os.nice(niceness)
    if os.getsid(0) != os.getpid():
        return
    # Not there outside Linux; asked again too soon it refuses, which costs speed only.
    with suppress(OSError):
        AUTOGROUP.write_text(str(niceness))


def main() -> int:
    """Run the task of the command line; what goes wrong unexpectedly is told before it ends the process."""
    stop = StopSignal()
    _end_with(os.getppid())
    _give_way(int(sys.argv[3]))
    with suppress(OSError):
        OOM_SCORE.write_text(FIRST_TO_GO)
    with os.fdopen(int(sys.argv[2]), "w") as pipe:
        supervisor = Supervisor(pipe)
        try:
            return run(Path(sys.argv[1]), supervisor, stop)
        except Exception as error:
            words = traceback.format_exc()[-LAST_WORDS_CHARS:]
            supervisor.tell("crashed", kind_of_crash=kind_of_crash(error), words=words)
            raise


if __name__ == "__main__":
    sys.exit(main())
