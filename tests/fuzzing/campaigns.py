"""Passes over the whole description: its edges, what fits it or almost does, raw JSON, chains of calls, all reads."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain, cycle, product, zip_longest
from typing import Any, TypeVar

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import Case, GenerationMode
from schemathesis.core.transport import Response
from schemathesis.schemas import APIOperation, BaseSchema
from tests.fuzzing.islands import ANONYMOUS, OPERATOR
from tests.fuzzing.judging import label_of
from tests.fuzzing.sending import Sender

T = TypeVar("T")

STEPS = 8
"""Calls of one chain, at most."""
JSON = "application/json"
TOKENS = (
    "null", "true", '""', "{}", "[]", "-1", "-0.0", "NaN", "-Infinity", "1e999", "1e-400",
    str(2**31), str(2**63), str(2**64), "1" + "0" * 400, '"\\ud800"', '"\\u0000"', '"\\u202e"',
    json.dumps("x" * 70_000), "[" * 30 + "]" * 30, json.dumps([0] * 20_000), '{"": {"": 0}}',
)  # fmt: skip
"""What stands in the place of one value of a body: what generators of values leave out."""
REFUSALS = 2
"""After so many a caller is taken for one who may not make the call."""
ID_ENDING = "_[0-9a-f]{32}$"
"""Of the pattern of an id."""
LARGEST = 200
"""Entries of a page of a list."""


@dataclass(frozen=True)
class Plan:
    """How much is sent in each pass; all of it is drawn from the seed."""

    seed: int
    edges: int
    """Boundary values, of all operations together, each sent by somebody."""
    draws: int
    """Cases of each operation by each caller that may call it: half fit the description, half do not."""
    tokens: int
    """Examples of bodies with one value exchanged for something rare, of all operations together."""
    chains: int
    """Chains of calls by each caller, along the links of the description; the first is the simplest."""
    reads: int
    """Callers who read whatever can be read, in every form and by the largest pages."""
    passes: int = 1
    """Alike, but for what is drawn."""
    callers: tuple[str, ...] = ()
    """Who calls; everybody, if nobody is named."""


class Campaign:
    """All cases of a plan, made once and dealt out to its passes; and who is known to be turned away."""

    def __init__(self, sender: Sender, plan: Plan) -> None:
        document: dict[str, Any] = sender.world.residents[OPERATOR].get("/openapi.json").json()
        sender.look_around(_lists(document))
        config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
        self._sender, self._plan = sender, plan
        self._callers = plan.callers or tuple(sender.world.residents)
        self._schema = schemathesis.openapi.from_dict(document, config=config)
        self._operations = [found.ok() for found in self._schema.get_all_operations()]
        self._rng = random.Random(plan.seed)  # noqa: S311 - to be repeated
        self._edges = self._dealt(_edges(self._schema, self._operations), plan.edges)
        self._tokens = self._dealt(_tokens(self._operations, document), plan.tokens)
        self._draws = {label_of(each): self._drawn(each) for each in self._operations}
        self._refused: Counter[tuple[str, str]] = Counter()

    def run(self, number: int) -> None:
        """Send one pass of the plan to the service that the sender's world lives in; they count from 0."""
        plan, send = self._plan, self._sender.send
        for case in self._edges[number]:
            send(case, self._rng.choice(self._callers))
        for operation in self._operations:
            self._send_draws(label_of(operation))
        for operation, body in self._tokens[number]:
            case = operation.Case(path_parameters=_ids(operation), body=body, media_type=JSON)
            send(case, self._rng.choice(self._able(operation) or [OPERATOR]))
        for place, name in enumerate(self._callers):
            seed = (plan.seed + number) * len(self._callers) + place
            self._send_chains(name, seed)
        for operation in self._operations:
            callers = self._able(operation)
            for name in self._rng.sample(callers, min(plan.reads, len(callers))):
                for case in _reads(operation):
                    send(case, name)

    def _able(self, operation: APIOperation) -> list[str]:
        return self._sender.judge.callers(label_of(operation))

    def _dealt(self, cases: Iterator[T], count: int) -> list[list[T]]:
        """So many cases for each pass, or as many as there are."""
        passes = self._plan.passes
        made = list(cases) if count else []
        found = self._rng.sample(made, min(count * passes, len(made)))
        return [found[number::passes] for number in range(passes)]

    def _drawn(self, operation: APIOperation) -> Iterator[Case]:
        """Cases of an operation without end; those that fit and those that do not in turn."""
        # Once it is known who may not make it, some half of all callers make a call.
        count = self._plan.draws * len(self._callers) * (1 + self._plan.passes) // 2
        if not count:
            return iter(())
        modes = [
            _generated(operation, mode, self._plan.seed, -(-count // 2))
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        ]
        for cases in modes:
            # Generators begin with what is small.
            self._rng.shuffle(cases)
        # Where more are asked for, or there are only few different ones, some are sent again.
        return cycle([each for each in chain(*zip_longest(*modes)) if each is not None])

    def _send_draws(self, label: str) -> None:
        for name in self._callers:
            for _ in range(self._plan.draws):
                case = next(self._draws[label], None)
                if case is None or self._refused[label, name] == REFUSALS:
                    break
                with _unchanged(case):
                    answer = self._sender.send(case, name)
                if answer is not None and answer.status_code in (
                    HTTPStatus.UNAUTHORIZED,
                    HTTPStatus.FORBIDDEN,
                ):
                    self._refused[label, name] += 1

    def _send_chains(self, name: str, seed: int) -> None:
        able = [label_of(each) for each in self._operations if name in self._able(each)]
        if not self._plan.chains or not able or name == ANONYMOUS:
            return
        machine = _machine(
            self._schema.include(operation_id=able), lambda case: self._sender.send(case, name)
        )
        hypothesis.seed(seed)(machine)
        # A chain that begins like an earlier one may be answered otherwise: hypothesis gives up then.
        with suppress(hypothesis.errors.Flaky):
            machine.run(settings=_settings(self._plan.chains, stateful_step_count=STEPS))


@contextmanager
def _unchanged(case: Case) -> Iterator[None]:
    """Take what a sender puts into a case out again: the next one would know ids of the one before."""
    kept = {name: getattr(case, name) for name in ("path_parameters", "query", "body")}
    kept["headers"] = case.headers.copy()
    yield
    for name, value in kept.items():
        setattr(case, name, value)


def _lists(document: dict[str, Any]) -> list[str]:
    """The paths of all lists that need no id."""
    return [
        path
        for path, item in document["paths"].items()
        if "{" not in path
        and any(each["name"] == "cursor" for each in item.get("get", {}).get("parameters", ()))
    ]


def _edges(schema: BaseSchema, operations: list[APIOperation]) -> Iterator[Case]:
    for operation in operations:
        yield from schema.iter_coverage_cases(
            operation,
            generation_modes=list(GenerationMode),
            generation_config=schema.config.generation,
        )


def _tokens(
    operations: list[APIOperation], document: dict[str, Any]
) -> Iterator[tuple[APIOperation, bytes]]:
    """Bodies, each with its operation."""
    for operation in operations:
        for example in _examples(operation, document):
            for text in _exchanged(example):
                yield operation, text.encode()


def _reads(operation: APIOperation) -> Iterator[Case]:
    """The operation, if it only reads, in all forms that its path can name and by the largest pages."""
    if operation.method.upper() != "GET":
        return
    choices = {
        each.name: each.definition["schema"].get("enum", [given])
        for each, given in zip(operation.path_parameters, _ids(operation).values(), strict=True)
    }
    paged = any(each.name == "limit" for each in operation.query)
    for values in product(*choices.values()):
        yield operation.Case(
            path_parameters=dict(zip(choices, values, strict=True)),
            query={"limit": LARGEST} if paged else {},
        )


def _ids(operation: APIOperation) -> dict[str, Any]:
    """Values of the path's parameters: ids of nothing, which senders exchange, and ones."""
    patterns = {
        each.name: each.definition["schema"].get("pattern", "")
        for each in operation.path_parameters
    }
    return {
        name: f"{pattern[1:4]}_{'0' * 32}" if pattern.endswith(ID_ENDING) else 1
        for name, pattern in patterns.items()
    }


def _examples(operation: APIOperation, document: dict[str, Any]) -> list[Any]:
    """Of the operation's JSON body."""
    body = operation.definition.raw.get("requestBody", {}).get("content", {}).get(JSON, {})
    found = body.get("schema", {})
    names = [each["$ref"] for each in (found, *found.get("anyOf", ())) if "$ref" in each]
    schemas = document["components"]["schemas"]
    return [each for name in names for each in schemas[name.rpartition("/")[2]].get("examples", ())]


def _exchanged(example: Any) -> Iterator[str]:
    """The example as JSON text, each of its values in turn exchanged for each of TOKENS."""
    hole = "\0"

    def with_hole(value: Any) -> Iterator[Any]:
        yield hole
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from ({**value, name: each} for each in with_hole(inner))
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                yield from (
                    [*value[:place], each, *value[place + 1 :]] for each in with_hole(inner)
                )

    for each in with_hole(example):
        before, after = json.dumps(each).split(json.dumps(hole))
        yield from (before + token + after for token in TOKENS)


def _generated(operation: APIOperation, mode: GenerationMode, seed: int, count: int) -> list[Case]:
    """So many cases of an operation; fewer where there are no more different ones."""
    found: list[Case] = []

    @hypothesis.seed(seed)
    @_settings(count)
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def collect(case: Case) -> None:
        found.append(case)

    try:
        collect()
    except hypothesis.errors.Unsatisfiable:
        # Where nothing can be wrong there are no cases that do not fit.
        return []
    return found


def _machine(schema: BaseSchema, send: Callable[[Case], Response | None]) -> Any:
    class Chain(schema.as_state_machine()):  # type: ignore[misc]  # made at run time
        def call(self, case: Case, **_: Any) -> Response:
            answer = send(case)
            # What cannot be sent is no step.
            hypothesis.assume(answer is not None)
            assert answer is not None
            return answer

        def validate_response(self, response: Response, case: Case, **_: Any) -> None:
            """The sender's judge has looked at it."""

    return Chain


def _settings(count: int, **more: Any) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
