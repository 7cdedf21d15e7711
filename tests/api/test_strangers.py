"""Whatever takes an id, wherever it stands, tells strangers nothing of the resource. Read from the service itself.

What stands in paths is `test_access`' matter. Here: that no route escapes its tables, ids in bodies
and queries, and lists.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route
from tests.api.conftest import Cast, Past, User
from tests.api.test_access import (
    ALLOWED,
    BODIES,
    DIGEST,
    HEX,
    OPERATIONS,
    PLACES,
    Estate,
    outsiders,
)

from expunge.api.app import create_app
from expunge.api.auth import authenticated
from expunge.api.bodies import JsonRoute
from expunge.registry.settings import Settings
from expunge.registry.tables import Role

APP = create_app(Settings(database_url="postgresql+psycopg:///none", object_store="file:///x"))
DESCRIPTION = APP.openapi()
ID = re.compile(r"\^([a-z]{3})_")
PARTIES = "pty"
"""Ids that may be named by anybody who knows them: to grant, to delegate. Of keys, see `test_keys`."""
KINDS = {"dst": "dataset", "mdl": "model", "req": "request"}
ALONE = {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/docs/assets")}


def served(routes: Any) -> Iterator[tuple[str, str, Any]]:
    """Method, path and route of whatever the app answers, through all routers that it includes."""
    for route in routes:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from served(inner.routes)
        elif isinstance(route, Mount):
            yield "GET", route.path, route
        else:
            assert isinstance(route, Route | APIRoute), f"{route} is of no known kind"
            for method in (route.methods or set()) - {"HEAD"}:
                yield method, route.path, route


SERVED = list(served(APP.routes))


def ids_in(schema: dict[str, Any], place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where a schema takes an id, and its prefix."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = DESCRIPTION["components"]["schemas"][name]
    if found := ID.match(schema.get("pattern", "")):
        yield place, found.group(1)
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from ids_in(each, place)
    if "items" in schema:
        yield from ids_in(schema["items"], (*place, "[]"))
    for name, inner in schema.get("properties", {}).items():
        yield from ids_in(inner, (*place, name))


class Named(NamedTuple):
    """An id that a call takes outside its path."""

    name: str
    where: str
    place: tuple[str, ...]
    prefix: str

    def __str__(self) -> str:
        return f"{self.name}:{'.'.join(self.place)}"


def named() -> Iterator[Named]:
    """Every id that a call takes in its body or its query."""
    for name, (method, path) in OPERATIONS.items():
        operation = DESCRIPTION["paths"][path][method.lower()]
        for media in operation.get("requestBody", {}).get("content", {}).values():
            for place, prefix in ids_in(media["schema"], ()):
                yield Named(name, "body", place, prefix)
        for each in operation.get("parameters", ()):
            if each["in"] == "query":
                for place, prefix in ids_in(each["schema"], (each["name"],)):
                    yield Named(name, "query", place, prefix)


NAMED = sorted({each for each in named() if each.prefix != PARTIES})
MORE = {
    "complete_checkpoint": {
        "bytes": 1,
        "sha256": "0" * 64,
        "part_bytes": 2**20,
        "parts": ["0" * 64],
    }
}
"""What bodies need beside `BODIES`."""
SPECIAL = {
    (Role.MODEL_OWNER, name, "dataset_ids"): 422
    for name in ("create_comparison", "estimate_removal")
}
"""Where the answer is no 404: an own model was not trained on it, whether it exists or not."""
LISTS = sorted(
    name
    for name, (method, path) in OPERATIONS.items()
    if method == "GET" and "{" not in path and {*ALLOWED.get(name, ())} - {"operator"}
)


class TestRoutes:
    """None escapes the tables of `test_access`, by its name, by hiding, or past the routers."""

    def test_what_is_served_is_what_the_tables_name_and_nothing_twice(self) -> None:
        routes = Counter((method, path) for method, path, _ in SERVED)
        assert [each for each, times in routes.items() if times > 1] == []
        assert set(routes) == set(OPERATIONS.values()) | ALONE

    def test_no_two_share_a_name_that_the_tables_know_them_by(self) -> None:
        paths = DESCRIPTION["paths"]
        assert len(OPERATIONS) == sum(map(len, paths.values()))
        names = Counter(route.name for _, _, route in SERVED)
        assert [name for name, times in names.items() if times > 1] == []

    def test_none_is_hidden_from_the_description(self) -> None:
        hidden = {
            (method, path)
            for method, path, route in SERVED
            if not getattr(route, "include_in_schema", False)
        }
        assert hidden == ALONE

    def test_a_body_that_fastapi_reads_is_read_of_callers_only(self) -> None:
        """FastAPI reads it before it asks whose call it is; `JsonRoute` asks before."""
        for method, path, route in SERVED:
            if getattr(route, "body_field", None) is not None:
                assert isinstance(route, JsonRoute), f"{method} {path}"

    def test_whoever_demands_a_key_says_so(self) -> None:
        secured = {
            name
            for name, (method, path) in OPERATIONS.items()
            if DESCRIPTION["paths"][path][method.lower()].get("security")
        }
        assert secured == set(ALLOWED)
        assert authenticated.__module__ == "expunge.api.auth"


@pytest.fixture(scope="module")
def estate(past: Past, data_owner: User, model_owner: User, cast: Cast) -> Estate:
    return Estate(past, data_owner, model_owner, cast.party(Role.AUDITOR))


class Stranger:
    """A party with things of its own, that are not those of the estate."""

    def __init__(self, past: Past, user: User, role: Role) -> None:
        self.user = user
        self.own: dict[str, str] = {}
        if role in (Role.DATA_OWNER, Role.MODEL_OWNER):
            self.own["dst"] = past.sealed(user)
        if role == Role.MODEL_OWNER:
            self.own["mdl"] = user.model(control_dataset_id=past.sealed(user))
            past.trained(user, self.own["mdl"], [self.own["dst"]])


@pytest.fixture(scope="module")
def strangers(past: Past, cast: Cast) -> dict[Role, Stranger]:
    roles = (Role.DATA_OWNER, Role.MODEL_OWNER, Role.AUDITOR)
    return {role: Stranger(past, cast.party(role), role) for role in roles}


def asked(stranger: Stranger, theirs: dict[str, str], named: Named) -> httpx.Response:
    """The call with one id of theirs, and all others as far as possible the stranger's own."""
    mine = theirs | stranger.own
    body = dict(BODIES.get(named.name) or {}) | MORE.get(named.name, {})
    query: dict[str, Any] = {}
    for each in (each for each in NAMED if each.name == named.name):
        value = (theirs if each == named else mine)[each.prefix]
        sent = body if each.where == "body" else query
        sent[each.place[0]] = [value] if each.place[1:] else value
    method, path = OPERATIONS[named.name]
    for placeholder, value in (PLACES | {"{model_id}": mine["mdl"]}).items():
        path = path.replace(placeholder, value)
    return stranger.user.http.request(method, path, json=body, params=query, headers=DIGEST)


@pytest.mark.parametrize("named", NAMED, ids=str)
def test_an_id_of_anothers_is_as_good_as_none_wherever_it_is_sent(
    strangers: dict[Role, Stranger], estate: Estate, named: Named
) -> None:
    assert named.prefix in KINDS, "say there where such an id comes from"
    assert named.place[1:] in ((), ("[]",)), "say in `asked` how it is sent"
    theirs = {prefix: str(getattr(estate, kind)) for prefix, kind in KINDS.items()}
    missing = {prefix: f"{prefix}_{HEX}" for prefix in KINDS}
    for role in outsiders(named.name):
        answer = asked(strangers[role], theirs, named)
        assert answer.status_code == SPECIAL.get((role, named.name, named.place[0]), 404), (
            answer.text
        )
        of_none = asked(strangers[role], theirs | {named.prefix: missing[named.prefix]}, named)
        assert of_none.status_code == answer.status_code
        sent, none = theirs[named.prefix], missing[named.prefix]
        assert answer.text.replace(sent, none) == of_none.text


@pytest.mark.parametrize("name", LISTS)
def test_no_list_names_what_is_anothers(
    strangers: dict[Role, Stranger], estate: Estate, name: str
) -> None:
    theirs = set(vars(estate).values())
    for role in outsiders(name):
        answer = strangers[role].user.get(OPERATIONS[name][1], params={"limit": 200})
        assert answer.status_code in (200, 404, 422), answer.text
        assert [each for each in theirs if each in answer.text] == []
