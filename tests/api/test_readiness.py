"""Readiness is found out by trying, once for all who ask, and never waits for what hangs."""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from expunge.api import readiness
from expunge.api.rates import RateLimits
from expunge.api.readiness import Check, Outcome, Readiness, _Try, checks_of
from expunge.registry.logs import configure_logging
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.worker.dispatcher import Dispatcher


def look(asked: Readiness) -> dict[str, Outcome]:
    return asyncio.run(asked.outcomes())


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_store_that_hangs_is_not_waited_for(
    settings: Settings, engine: Engine, silent_server: str
) -> None:
    hanging = settings.model_copy(
        update={"object_store": "s3://bucket", "s3_endpoint": silent_server}
    )
    checks = checks_of(hanging, engine, open_store(hanging), RateLimits.of(hanging))
    objects = [each for each in checks if each.name == "objects"]
    assert look(Readiness(objects, longest_seconds=0.5)) == {"objects": Outcome.FAILED}


def test_what_hangs_has_one_thread_however_many_ask() -> None:
    over = threading.Event()
    started: list[None] = []

    def hang() -> None:
        started.append(None)
        over.wait()

    async def ask() -> list[dict[str, Outcome]]:
        asked = Readiness([Check("stuck", hang)], longest_seconds=0.05)
        answers = list(await asyncio.gather(*(asked.outcomes() for _ in range(100))))
        await asyncio.sleep(1.1)
        answers.append(await asked.outcomes())
        over.set()
        return answers

    assert all(found == {"stuck": Outcome.FAILED} for found in asyncio.run(ask()))
    assert len(started) == 1


def test_who_asks_again_at_once_gets_the_same_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 600)
    looks: list[None] = []

    async def ask() -> None:
        asked = Readiness([Check("counted", lambda: looks.append(None))])
        for _ in range(50):
            assert await asked.outcomes() == {"counted": Outcome.OK}

    asyncio.run(ask())
    assert len(looks) == 1


def test_an_outage_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    away = iter((True, True, False, False, True))

    def reach() -> None:
        if next(away):
            raise ConnectionError("nobody there")

    async def ask() -> None:
        tried = _Try(Check("store", reach), longest_seconds=30)
        for _ in range(5):
            await tried.outcome()

    before = logging.getLogger().handlers
    configure_logging()
    logging.getLogger().addHandler(caplog.handler)
    try:
        asyncio.run(ask())
    finally:
        logging.getLogger().handlers = before
    lines = [each.msg for each in caplog.records if isinstance(each.msg, dict)]
    assert [line["event"] for line in lines] == ["not-ready", "ready-again", "not-ready"]
    assert "nobody there" in lines[0]["error"]


def test_who_leaves_does_not_take_the_look_away_from_others() -> None:
    release = threading.Event()

    async def ask() -> dict[str, Outcome]:
        asked = Readiness([Check("slow", lambda: release.wait() and None)])
        leaving = asyncio.create_task(asked.outcomes())
        staying = asyncio.create_task(asked.outcomes())
        await asyncio.sleep(0.05)
        leaving.cancel()
        release.set()
        return await staying

    assert asyncio.run(ask()) == {"slow": Outcome.OK}


def test_a_warning_says_what_an_operator_should_look_at(settings: Settings, engine: Engine) -> None:
    store = open_store(settings)
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    rates = RateLimits.of(settings)
    cramped = settings.model_copy(update={"max_shard_bytes": 2**60})
    found = look(Readiness(checks_of(cramped, engine, store, rates)))
    assert found["work_dir"] == Outcome.WARNING
    assert found["dispatcher"] == Outcome.WARNING, "none has ever run"

    Dispatcher(settings, engine, store).step()
    found = look(Readiness(checks_of(settings, engine, store, rates)))
    assert {name for name, outcome in found.items() if outcome != Outcome.OK} == {"redis"}
