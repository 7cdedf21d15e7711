"""Calls that wait for a job hear of its end from PostgreSQL."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from expunge.api.endings import Endings
from expunge.api.waiting import until_final
from expunge.registry.jobs import ENDED_CHANNEL

WAIT_SECONDS = 20


@pytest.fixture
def endings(engine: Engine) -> Iterator[Endings]:
    endings = Endings(engine)
    endings.start()
    yield endings
    endings.stop()


def say(engine: Engine, job_id: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("SELECT pg_notify(:channel, :job)"), {"channel": ENDED_CHANNEL, "job": job_id}
        )


async def heard(engine: Engine, event: asyncio.Event, job_id: str) -> None:
    """The thread may not listen yet: say it until it is heard."""
    for _ in range(WAIT_SECONDS * 10):
        await asyncio.to_thread(say, engine, job_id)
        try:
            await asyncio.wait_for(event.wait(), 0.1)
        except TimeoutError:
            continue
        return
    pytest.fail("nothing was heard")


def test_who_waits_for_a_job_hears_of_its_end_and_of_no_other(
    endings: Endings, engine: Engine
) -> None:
    async def wait() -> bool:
        with endings.of("job_1") as mine, endings.of("job_1") as too, endings.of("job_2") as other:
            await heard(engine, mine, "job_1")
            await asyncio.wait_for(too.wait(), WAIT_SECONDS)
            return other.is_set()

    assert asyncio.run(wait()) is False


def test_an_end_is_still_heard_after_the_connection_was_cut(
    endings: Endings, engine: Engine
) -> None:
    async def wait() -> None:
        with endings.of("job_1") as event:
            await heard(engine, event, "job_1")
            event.clear()
            with engine.begin() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE query ILIKE 'LISTEN%' AND pid <> pg_backend_pid()"
                    )
                )
            await heard(engine, event, "job_1")

    asyncio.run(wait())


def test_a_call_that_hears_of_the_end_looks_at_once() -> None:
    async def wait() -> int:
        ended = asyncio.Event()
        ended.set()
        return await until_final(0, lambda: 1, lambda state: state == 1, 60, ended=ended)

    assert asyncio.run(asyncio.wait_for(wait(), WAIT_SECONDS)) == 1


def test_a_call_that_hears_nothing_looks_all_the_same() -> None:
    answers = iter([0, 0, 1])

    async def wait() -> int:
        return await until_final(
            0, lambda: next(answers), lambda state: state == 1, 60, ended=asyncio.Event()
        )

    assert asyncio.run(asyncio.wait_for(wait(), WAIT_SECONDS)) == 1
