"""The sweep beside writers, other sweeps, and a store that is away or late: no order of events breaks the promise."""

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.registry.archive import (
    GRACE_SECONDS,
    Archive,
    LateStore,
    emptied,
    logged,
    newest_log,
)

from expunge.registry import orphans
from expunge.registry.database import Sessions
from expunge.registry.objects import DirectoryStore, StoreUnavailable, read_bytes
from expunge.registry.transitions import LeaseLost

RACE_SECONDS = 3


@pytest.fixture
def archive(session_factory: Sessions, directory_store: DirectoryStore, tmp_path: Path) -> Archive:
    """An empty one."""
    return Archive(emptied(session_factory), directory_store, tmp_path)


class TestOutage:
    """A store that is away in the middle of a sweep."""

    def test_the_next_sweep_ends_what_this_one_began(self, archive: Archive) -> None:
        start = newest_log(archive.sessions)
        keys = sorted(archive.stray(each) for each in (b"a", b"b"))
        away = LateStore(archive.folder / "objects")
        with pytest.raises(StoreUnavailable):
            orphans.sweep(archive.sessions, away, grace_seconds=0)
        assert logged(archive.sessions, start) == []
        assert archive.sweep(GRACE_SECONDS).removed == keys
        assert logged(archive.sessions, start) == [{"count": 2, "keys": keys}]

    def test_a_deletion_carried_out_late_hits_nothing_that_was_stored_since(
        self, archive: Archive
    ) -> None:
        archive.stray(b"same bytes")
        away = LateStore(archive.folder / "objects")
        with pytest.raises(StoreUnavailable):
            orphans.sweep(archive.sessions, away, grace_seconds=0)
        archive.name(archive.put(b"same bytes"), archive.dataset())
        away.catch_up()
        assert archive.check(deep=True) == []

    def test_not_even_after_another_sweep_succeeded(self, archive: Archive) -> None:
        archive.stray(b"same bytes")
        away = LateStore(archive.folder / "objects")
        with pytest.raises(StoreUnavailable):
            orphans.sweep(archive.sessions, away, grace_seconds=0)
        archive.sweep(0)
        archive.name(archive.put(b"same bytes"), archive.dataset())
        away.catch_up()
        assert archive.check(deep=True) == []


class Race:
    """Writers that store, record, check and unname the same two contents, beside sweeps without grace."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.failures: list[str] = []
        self.counts = {"recorded": 0, "refused": 0, "removed": 0}
        self._stop = threading.Event()

    def run(self, *works: Callable[[], Iterator[None]]) -> None:
        threads = [threading.Thread(target=self._repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        time.sleep(RACE_SECONDS)
        self._stop.set()
        for thread in threads:
            thread.join()

    def _repeat(self, work: Callable[[], Iterator[None]]) -> None:
        try:
            for _ in work():
                if self._stop.is_set():
                    return
        except Exception as error:
            self.failures.append(repr(error))
            raise

    def write(self) -> Iterator[None]:
        dataset = self.archive.dataset()
        for round_ in itertools.count():
            yield
            data = b"content %d" % (round_ % 2)
            key = self.archive.put(data)
            try:
                self.archive.name(key, dataset)
            except orphans.ObjectRemoved:
                self.counts["refused"] += 1
                continue
            self.counts["recorded"] += 1
            if read_bytes(self.archive.store, key) != data:
                self.failures.append(key)
            self.archive.unname(dataset=dataset)

    def sweep(self) -> Iterator[None]:
        while True:
            self.counts["removed"] += len(self.archive.sweep(0).removed)
            yield


def test_sweepers_and_writers_of_the_same_contents_at_once(archive: Archive) -> None:
    race = Race(archive)
    race.run(race.write, race.write, race.write, race.sweep, race.sweep)
    assert race.failures == []
    # Whether a writer came so late that it was refused is chance; `test_orphans.py` makes it happen.
    assert race.counts["recorded"] > 0, race.counts
    assert race.counts["removed"] > 0, race.counts
    archive.sweep(0)
    assert archive.keys() == []


def test_of_several_sweepers_at_once_one_reports_each_removal(archive: Archive) -> None:
    start = newest_log(archive.sessions)
    keys = sorted(archive.stray(str(each).encode()) for each in range(100))
    results: list[orphans.Swept] = []
    threads = [threading.Thread(target=lambda: results.append(archive.sweep(0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert sorted(key for each in results for key in each.removed) == keys
    assert sum(row["count"] for row in logged(archive.sessions, start)) == 100
    assert archive.keys() == []


class World(RuleBasedStateMachine):
    """Three contents, each stored, recorded, unnamed and swept in any order, the store away now and then."""

    contents = st.integers(0, 2)

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._away = LateStore(folder / "objects")
        self._archive = Archive(emptied(sessions), DirectoryStore(folder / "objects"), folder)
        self._dataset = self._archive.dataset()
        self._lease = self._archive.lease()
        self._stored: dict[int, str] = {}

    @rule(which=contents)
    def put(self, which: int) -> None:
        self._stored[which] = self._archive.put(b"%d" % which)

    @rule(which=contents)
    def put_as_attempt(self, which: int) -> None:
        try:
            self._stored[which] = self._archive.put(b"%d" % which, lease=self._lease)
        except LeaseLost:
            self._lease = self._archive.lease()

    @rule()
    def lose_the_lease(self) -> None:
        self._archive.lose(self._lease)

    @rule(which=contents)
    def record(self, which: int) -> None:
        if which in self._stored:
            with suppress(orphans.ObjectRemoved):
                self._archive.name(self._stored.pop(which), self._dataset, f"{which}.tar")

    @rule(which=contents)
    def unname(self, which: int) -> None:
        self._archive.unname(f"{which}.tar")

    @rule(grace_seconds=st.sampled_from([0, GRACE_SECONDS]))
    def sweep(self, grace_seconds: float) -> None:
        self._archive.sweep(grace_seconds)

    @rule()
    def sweep_while_the_store_is_away(self) -> None:
        with suppress(StoreUnavailable):
            orphans.sweep(self._archive.sessions, self._away, grace_seconds=0)

    @rule()
    def carry_out_late_deletions(self) -> None:
        self._away.catch_up()

    @rule()
    def let_time_pass(self) -> None:
        self._archive.let_pass(GRACE_SECONDS + 1)

    @invariant()
    def every_named_object_is_whole(self) -> None:
        assert self._archive.check(deep=True) == []

    def teardown(self) -> None:
        self._archive.lose(self._lease)
        self._away.catch_up()
        self._archive.sweep(0)
        assert self._archive.check(deep=True) == []
        assert self._archive.keys() == self._archive.named()
        self._folder.cleanup()


def test_no_order_of_events_leaves_a_row_without_its_object_or_an_object_without_a_row(
    session_factory: Sessions,
) -> None:
    run_state_machine_as_test(
        lambda: World(session_factory),
        settings=settings(max_examples=30, stateful_step_count=25, deadline=None),
    )
