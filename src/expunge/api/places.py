"""How many calls a key may hold open at once in this process: event streams, waiting calls, uploads, their checks.

Each of them looks at the database again and again, or fills the disk. Counts by key, whatever is called.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from expunge.registry.errors import DomainError

RETRY_AFTER_SECONDS = 5


class TooManyOpen(DomainError):
    """The key holds as many calls open as it may."""

    slug, title, status = "too-many-open-calls", "Too many open calls", 429


class Places:
    """For all calls of a process; `allowed` of 0 is no limit."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._guard = threading.Lock()
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, key_id: str) -> Iterator[None]:
        """A place, for as long as the call lasts.

        Raises:
            TooManyOpen: the key has none left.
        """
        with self._guard:
            taken = self._taken[key_id]
            if self._allowed and taken >= self._allowed:
                raise TooManyOpen(
                    f"At most {self._allowed:,} event streams, waiting calls, uploads and their checks of "
                    f"one key are open at once, and {taken:,} are: close one, or wait for one.",
                    allowed=self._allowed,
                    open=taken,
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                )
            self._taken[key_id] += 1
        try:
            yield
        finally:
            with self._guard:
                self._taken[key_id] -= 1
                if not self._taken[key_id]:
                    del self._taken[key_id]
