"""The training process: reads a task file, does the task, tells its supervisor how it goes.

Started as `python -m expunge.worker.training_process TASK_FILE PIPE_FD`. Knows no database, no object store
and no key; what it may touch lies in one folder, and the folder of Retrain's checkpoints.
"""

import os
import sys
from pathlib import Path

from expunge.unlearning.checkpoints import CheckpointMismatch
from expunge.unlearning.errors import TrainingError
from expunge.worker.supervisor_pipe import Supervisor
from expunge.worker.task import ComparisonTask, Task, from_json


def run(task: Task, supervisor: Supervisor) -> None:
    """Do what the task says; what a kind of task needs is imported for that kind only."""
    if isinstance(task, ComparisonTask):
        from expunge.worker import comparison_run  # noqa: PLC0415 - see above

        comparison_run.run(task, supervisor)
    else:
        from expunge.worker import training_run  # noqa: PLC0415 - see above

        training_run.run(task, supervisor)


def main() -> int:
    """Run the task of the command line; exit status 0 if its result is complete."""
    task = from_json(Path(sys.argv[1]).read_text())
    with os.fdopen(int(sys.argv[2]), "w") as pipe:
        supervisor = Supervisor(pipe)
        try:
            run(task, supervisor)
        except (TrainingError, CheckpointMismatch) as error:
            supervisor.tell("failed", reason=str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
