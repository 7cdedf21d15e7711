"""Generated calls by everybody to every route: no server error, nothing undocumented, nothing of other parties."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import schemathesis
from schemathesis import Case
from sqlalchemy import Engine
from tests.api.conftest import Past
from tests.api.removed import quick_worker
from tests.fuzzing.campaigns import Campaign, Plan
from tests.fuzzing.files import known_to_schemathesis
from tests.fuzzing.islands import OPERATOR, Contents, World
from tests.fuzzing.judging import Judge
from tests.fuzzing.sending import Sender

from expunge.registry.settings import Settings
from expunge.worker.sealer import Sealer

CALLERS = ("owner-1", "model-owner-1", "auditor-1", "owner-2")
PLAN = Plan(seed=6, edges=0, draws=1, tokens=40, chains=0, reads=0, callers=CALLERS)
"""A little of what `make fuzz` sends by the thousand."""


@pytest.fixture(scope="module")
def settings(settings: Settings, signing_key: str) -> Settings:
    return settings.model_copy(update={"signing_key_file": signing_key})


@pytest.fixture(scope="module")
def world(past: Past, url: str, engine: Engine, settings: Settings) -> Iterator[World]:
    """Parties of every role, twice, and somebody without a key."""
    sealer = Sealer(settings, past.sessions)

    def seal() -> None:
        while sealer.step():
            pass

    with quick_worker(settings, engine):
        world = World.build(past, url, PLAN.seed, seal)
        yield world
        world.close()


@pytest.fixture
def judge(world: World) -> Judge:
    return Judge(world)


@pytest.fixture
def shown(world: World, judge: Judge) -> Callable[[str, str], list[str]]:
    """Kinds of findings, after somebody was shown a page of data sets of which one has this name."""
    case = case_of(world, "/datasets", "GET")

    def show(reader: str, name: str) -> list[str]:
        row = {"name": name, "state": "open"}
        answer = httpx.Response(
            200, json=row, request=httpx.Request("GET", f"{world.url}/datasets")
        )
        answer.elapsed = timedelta(0)
        judge.look(reader, case, answer, whole=False)
        return [each.kind for each in judge.findings.values()]

    return show


def case_of(world: World, path: str, method: str, **parameters: str) -> Case:
    document = world.residents[OPERATOR].get("/openapi.json").json()
    return schemathesis.openapi.from_dict(document)[path][method].Case(path_parameters=parameters)


def only_owners(world: World) -> tuple[str, Contents]:
    """Id and marks of a data set that nobody but owner-1 was shown."""
    alone = frozenset({"owner-1"})
    return next(
        (dataset, each)
        for dataset, each in world.contents.items()
        if world.marks.readers[each.name] == alone
    )


def test_the_judge_finds_what_is_shown_to_others(
    world: World, judge: Judge, shown: Callable[[str, str], list[str]]
) -> None:
    _, contents = only_owners(world)
    assert shown("owner-1", contents.name) == []
    assert shown("model-owner-1", contents.name) == ["a mark of another party"]
    other = world.residents["owner-2"].id
    judge.seen_first[other] = "owner-2"
    assert "an id of another party: pty" in shown("owner-1", other)
    assert "a key's secret" in shown("owner-1", world.residents["owner-1"].key)


def test_the_judge_knows_with_whom_generated_calls_share(
    world: World, judge: Judge, shown: Callable[[str, str], list[str]]
) -> None:
    dataset, contents = only_owners(world)
    owner = world.residents["owner-1"]
    answer = owner.post(
        f"/datasets/{dataset}/grants", {"party_id": world.residents["model-owner-1"].id}
    )
    assert answer.status_code == 201
    judge.look(
        "owner-1",
        case_of(world, "/datasets/{dataset_id}/grants", "POST", dataset_id=dataset),
        answer,
        whole=True,
    )
    assert shown("model-owner-1", contents.name) == []
    assert shown("auditor-1", contents.name) == ["a mark of another party"]


def test_no_generated_call_finds_a_fault(world: World, judge: Judge, tmp_path: Path) -> None:
    known_to_schemathesis(tmp_path, PLAN.seed)
    sender = Sender(world, judge, PLAN.seed)
    Campaign(sender, PLAN).run(0)
    assert [f"{each.kind}: {each.example}" for each in judge.findings.values()] == []
    statuses = {status for _, _, status in judge.answers}
    assert {200, 403, 404, 422} <= statuses
    assert sender.unsendable < sender.sent / 10
