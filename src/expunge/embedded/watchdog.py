"""Ends what the main thread does when a process of the stack dies: nobody waits for dead workers."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from expunge.embedded.processes import ProcessFailedError
from expunge.embedded.stack import Stack

CHECK_SECONDS = 0.5


@contextmanager
def watched(stack: Stack) -> Iterator[None]:
    """While inside, the death of a process interrupts the main thread and is raised here.

    Raises:
        ProcessFailedError: a process has ended; the message says which and why.
    """
    done = threading.Event()
    failures: list[ProcessFailedError] = []

    def watch() -> None:
        while not done.wait(CHECK_SECONDS):
            try:
                stack.check()
            except ProcessFailedError as failure:
                failures.append(failure)
                # A signal also gets the main thread out of a wait for the network.
                os.kill(os.getpid(), signal.SIGINT)
                return

    # A shell starts background commands with SIGINT ignored, and then nothing would be interrupted.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if failures:
            raise failures[0] from None
        raise
    finally:
        done.set()
        thread.join()
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
