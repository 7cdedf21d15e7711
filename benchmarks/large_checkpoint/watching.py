"""What comes to the store while a client sends: how much, how fast, and whether it was there before."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from large_checkpoint.service import LOOK_SECONDS, Run

DIGEST_CHARS = 64


class Watch:
    """Looks at the parts in the store: what comes, how fast, and what was there and comes again."""

    def __init__(self, run: Run) -> None:
        self._old = _part_files(run)
        self._files = dict(self._old)
        self._run, self._over = run, threading.Event()
        self._times: list[float] = []
        self._first = 0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    @property
    def there(self) -> int:
        """Bytes of all parts that are there or have been."""
        return sum(size for size, _ in self._files.values())

    @property
    def sent(self) -> int:
        """Bytes that came since it began to look."""
        return self.there - sum(size for size, _ in self._old.values()) + self.again

    @property
    def again(self) -> int:
        """Bytes of parts that were there, whole, and were written anew."""
        return sum(
            size
            for name, (size, written) in self._files.items()
            if name in self._old and self._old[name][0] == size and self._old[name][1] != written
        )

    @property
    def seconds(self) -> float:
        """From the first part that came to the last."""
        return self._times[-1] - self._times[0]

    @property
    def timed(self) -> int:
        """Bytes that came in these seconds."""
        return self.there - self._first

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            # What is gone has been put together with the others.
            found = self._files | _part_files(self._run)
            if found != self._files:
                self._times.append(time.monotonic())
                self._files = found
                self._first = self._first or self.there

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()


@contextmanager
def watched(run: Run, what: str) -> Iterator[Watch]:
    watch = Watch(run)
    try:
        yield watch
    finally:
        watch.end()
    run.sending[what] = {
        "bytes": watch.sent,
        "again": watch.again,
        "timed_bytes": watch.timed,
        "seconds": watch.seconds,
    }


def _part_files(run: Run) -> dict[str, tuple[int, int]]:
    """Size and time of the last write (ns) of the parts in the store."""
    found = {}
    # While rclone writes one, it has a longer name.
    for path in run.objects.glob(f"uploads/parts/*/*/*/{'?' * DIGEST_CHARS}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found[path.name] = (status.st_size, status.st_mtime_ns)
    return found
