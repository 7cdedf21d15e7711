"""A worker that checks uploads, as a process: `python -m expunge.worker interactive` without a broker's messages."""

import signal

from expunge.registry.database import connect, sessions
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.registry.tables import JobKind
from expunge.worker.context import Context
from expunge.worker.running import Runner

LOOK_SECONDS = 0.1


def main() -> None:
    """Work until asked to stop."""
    settings = Settings()
    context = Context(settings, sessions(connect(settings.database_url)), open_store(settings))
    runner = Runner(context, [JobKind.VERIFY])
    signal.signal(signal.SIGTERM, lambda *_: context.stopping.set())
    while not context.stopping.wait(LOOK_SECONDS):
        runner.work_off()
    context.close()


if __name__ == "__main__":
    main()
