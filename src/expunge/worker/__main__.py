"""`python -m expunge.worker dispatch|train|interactive`: the processes beside the api."""

import argparse
import signal
import sys
import threading
from typing import Any

from celery import signals

from expunge.registry import spans
from expunge.registry.database import connect, sessions
from expunge.registry.jobs import WAKE_CHANNEL
from expunge.registry.logs import configure_logging
from expunge.registry.notifications import Listener
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.worker import metering
from expunge.worker.context import Context
from expunge.worker.device import NoSuchDevice, find
from expunge.worker.dispatcher import Dispatcher
from expunge.worker.presence import SignsOfLife, labels_of, presence_of
from expunge.worker.running import Runner
from expunge.worker.wakeups import LOOK_FOR_WORK, ROLES, kinds_of, make_celery


def dispatch(settings: Settings) -> None:
    """Run a dispatcher until SIGTERM or SIGINT."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    engine = connect(settings.database_url)
    Dispatcher(settings, engine, open_store(settings)).run(stopping.is_set)
    engine.dispose()


def work(settings: Settings, role: str) -> None:
    """Run a Celery worker of one role until SIGTERM or SIGINT.

    Celery's solo pool only passes wake-ups on to the thread that does the jobs, one at a time: no
    fork stands between CUDA and its user, and that thread goes on where Redis fails.
    """
    device = find(settings.device)
    engine = connect(settings.database_url)
    context = Context(settings, sessions(engine), open_store(settings))
    labels = labels_of(settings, device)
    runner = Runner(context, kinds_of(role), role, labels)
    presence = presence_of(runner.name, role, kinds_of(role), device, labels)
    signs_of_life = SignsOfLife(context, presence)
    # Somebody waits for an audit: its worker hears of it at once, not by way of dispatcher and Redis.
    listener = Listener(engine, WAKE_CHANNEL, lambda _: runner.wake())
    if role == "interactive":
        from expunge.worker.encoders import leave_cores_to_training  # noqa: PLC0415 - brings torch

        leave_cores_to_training()
        _ = runner.auditor
        listener.start()
    app = make_celery(settings)
    app.task(runner.wake_and_wait, name=LOOK_FOR_WORK)

    def stop(**_: Any) -> None:
        context.stopping.set()
        runner.wake()

    signals.worker_shutting_down.connect(stop)
    # Celery hears signals itself once it has started; until then too a job is given back in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    jobs = threading.Thread(target=runner.run, name="jobs")
    jobs.start()
    try:
        signs_of_life.start()
        app.worker_main(
            [
                "worker",
                "--pool=solo",
                f"--queues={','.join(ROLES[role])}",
                f"--hostname={runner.name}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "--loglevel=INFO",
            ]
        )
    finally:
        stop()
        if role == "interactive":
            listener.stop()
        jobs.join()
        signs_of_life.stop()
        context.close()
        engine.dispose()


def main() -> None:
    """Start what the command line names; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="python -m expunge.worker", description=__doc__)
    parser.add_argument("role", choices=["dispatch", *ROLES], help="what this process does")
    role = parser.parse_args().role
    configure_logging()
    settings = Settings()
    metering.serve(settings)
    spans.start(settings, f"expunge-{role}")
    try:
        if role == "dispatch":
            dispatch(settings)
        else:
            work(settings, role)
    except NoSuchDevice as error:
        sys.exit(str(error))
    finally:
        spans.stop()


if __name__ == "__main__":
    main()
