"""Sends generated cases over HTTP as somebody, with ids of real things put in. Judges nothing itself."""

import hashlib
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
import requests
from schemathesis import Case
from schemathesis.core.transport import Response
from tests.fuzzing.islands import ANONYMOUS, Resident, World
from tests.fuzzing.judging import ID, Judge, label_of

from expunge.formats.digests import content_digest

HANG_SECONDS = 30.0
STREAM_SECONDS = 0.2
"""A stream of events that has begun may stay silent for so long; then one hangs up."""
OWN, FOREIGN = 0.75, 0.15
"""Shares of ids that become ids of the caller's own things, and of things of the other island."""
TRUE_DIGEST, WAITING, REPEATED, KEYLESS = 0.9, 0.2, 0.2, 0.02
KEPT_IDS = 100
ID_BYTES = re.compile(ID.pattern.encode())
UNSENDABLE = (
    requests.exceptions.InvalidHeader,
    requests.exceptions.InvalidURL,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
    UnicodeEncodeError,
)
"""What no client would put on the wire."""
DESTRUCTIVE = {
    "delete_dataset", "revoke_key", "rotate_key", "withdraw_grant", "withdraw_delegation",
}  # fmt: skip
SPARED = 0.8
"""Share of destructive calls that get an id of nothing: else nothing would be left to ask about."""


@dataclass
class Sender:
    """Puts real ids, digests and keys into cases, by a seed; knows which ids each caller has seen."""

    world: World
    judge: Judge
    seed: int
    sent: int = 0
    unsendable: int = 0
    slowest: tuple[float, str] = (0.0, "")
    """Seconds of the slowest answer, and its operation."""
    on_sent: Callable[[int], None] = lambda _: None
    """Called after every call with their number."""
    ids: dict[str, dict[str, list[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    """By caller and prefix."""

    def look_around(self, lists: list[str]) -> None:
        """Let everybody read all lists, so that their ids are known as theirs."""
        for name, resident in self.world.residents.items():
            for path in lists:
                self._remember(name, resident.get(path, params={"limit": 200}).text)

    def send(self, case: Case, name: str) -> Response | None:
        """The answer to the case as this caller sends it, judged; none if it cannot be sent or none came."""
        self.sent += 1
        answer = self._answer(case, name)
        self.on_sent(self.sent)
        return answer

    def _answer(self, case: Case, name: str) -> Response | None:
        resident = self.world.residents[name]
        rng = random.Random(f"{self.seed} {self.sent}")  # noqa: S311 - to be repeated
        self._prepare(case, name, rng)
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), HANG_SECONDS)
        try:
            request = self._request(case, resident, timeout)
            started = time.perf_counter()
            answer, whole = self._exchange(resident.http, request, timeout)
        except UNSENDABLE:
            self.unsendable += 1
            return None
        except httpx.TimeoutException as error:
            self.judge.found("no answer in time", case, name, repr(error))
            return None
        except httpx.TransportError as error:
            self.judge.found("the connection broke", case, name, repr(error))
            return None
        self.slowest = max(self.slowest, (time.perf_counter() - started, label_of(case.operation)))
        self.judge.look(name, case, answer, whole=whole)
        if answer.status_code == HTTPStatus.UNAUTHORIZED and "Authorization" in case.headers:
            self.judge.seen_first[self.world.renew(name)] = name
        if "json" in answer.headers.get("content-type", ""):
            self._remember(name, answer.text)
        return Response.from_httpx(answer, verify=True)

    def _exchange(
        self, http: httpx.Client, request: httpx.Request, timeout: dict[str, float]
    ) -> tuple[httpx.Response, bool]:
        """The answer, and whether it is all of it."""
        answer = http.send(request, stream=True)
        whole, content = True, bytearray()
        try:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                # httpx reads its time limit anew for every part.
                timeout["read"] = STREAM_SECONDS
                whole = False
            for part in answer.iter_raw():
                content += part
        except httpx.ReadTimeout:
            if whole:
                raise
        finally:
            answer.close()
        found = httpx.Response(
            answer.status_code, headers=answer.headers, content=bytes(content), request=request
        )
        found.elapsed = answer.elapsed
        return found, whole

    def _request(self, case: Case, resident: Resident, timeout: dict[str, float]) -> httpx.Request:
        wire = requests.Request(**case.as_transport_kwargs(base_url=self.world.url)).prepare()
        headers = [(_raw(name), _raw(value)) for name, value in wire.headers.items()]
        body = wire.body.encode() if isinstance(wire.body, str) else wire.body
        return httpx.Request(
            str(wire.method), str(wire.url), headers=headers, content=body,
            extensions={"timeout": timeout},
        )  # fmt: skip

    def _prepare(self, case: Case, name: str, rng: random.Random) -> None:
        if label_of(case.operation) not in DESTRUCTIVE or rng.random() >= SPARED:
            case.path_parameters = self._swapped(case.path_parameters, name, rng)
        case.query = self._swapped(case.query, name, rng)
        case.body = self._swapped(case.body, name, rng)
        key = self.world.residents[name].key
        case.headers.pop("Authorization", None)
        if key and rng.random() >= KEYLESS:
            case.headers["Authorization"] = f"Bearer {key}"
        if isinstance(case.body, bytes) and rng.random() < TRUE_DIGEST:
            digest = hashlib.sha256(case.body).hexdigest()
            case.headers["Content-Digest"] = content_digest(digest)
        if rng.random() < WAITING:
            case.headers["Prefer"] = f"wait={rng.choice((0, 1))}"
        if rng.random() < REPEATED:
            case.headers["Idempotency-Key"] = f"again-{rng.randrange(20)}"

    def _swapped(self, value: Any, name: str, rng: random.Random) -> Any:
        """The value with every id in it exchanged, or not, for one of something real."""
        if isinstance(value, str) and ID.fullmatch(value):
            return self._another(value, name, rng)
        if isinstance(value, list):
            return [self._swapped(each, name, rng) for each in value]
        if isinstance(value, bytes) and b"\0" not in value:
            # A body of raw JSON; files hold zeros.
            return ID_BYTES.sub(
                lambda found: self._another(found.group().decode(), name, rng).encode(), value
            )
        if isinstance(value, dict):
            return {key: self._swapped(each, name, rng) for key, each in value.items()}
        return value

    def _another(self, given: str, name: str, rng: random.Random) -> str:
        prefix, chance = given[:3], rng.random()
        if chance < OWN:
            known = self.ids[name][prefix]
        # To name a party of the other island would be to share with it.
        elif chance < OWN + FOREIGN and prefix != "pty":
            island = self.world.residents[name].island
            known = [
                each
                for other, resident in self.world.residents.items()
                if resident.island != island and other != ANONYMOUS
                for each in self.ids[other][prefix]
            ]
        else:
            known = []
        return rng.choice(known) if known else given

    def _remember(self, name: str, text: str) -> None:
        for each in dict.fromkeys(ID.findall(text)):
            self.judge.seen_first.setdefault(each, name)
            known = self.ids[name][each[:3]]
            if each not in known and len(known) < KEPT_IDS:
                known.append(each)


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")
