"""Four ways through the whole description: its edges, what fits it or almost does, raw JSON, chains of calls."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain, zip_longest
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import Case, GenerationMode
from schemathesis.core.transport import Response
from schemathesis.schemas import APIOperation, BaseSchema
from tests.fuzzing.islands import ANONYMOUS, OPERATOR
from tests.fuzzing.judging import label_of
from tests.fuzzing.sending import Sender

STEPS = 8
"""Calls of one chain, at most."""
JSON = "application/json"
TOKENS = (
    "null", "true", '""', "{}", "[]", "-1", "-0.0", "NaN", "-Infinity", "1e999", "1e-400",
    str(2**31), str(2**63), str(2**64), "1" + "0" * 400, '"\\ud800"', '"\\u0000"', '"\\u202e"',
    json.dumps("x" * 70_000), "[" * 30 + "]" * 30, json.dumps([0] * 20_000), '{"": {"": 0}}',
)  # fmt: skip
"""What stands in the place of one value of a body: what generators of values leave out."""
TURNS = 3
"""Into which the chains of a caller are divided."""
REFUSALS = 2
"""After so many a caller is taken for one who may not make the call."""


@dataclass(frozen=True)
class Plan:
    """How much is sent; all of it is drawn from the seed."""

    seed: int
    edges: int
    """Boundary values, of all operations together, each sent by somebody."""
    draws: int
    """Cases of each operation by each caller that may call it: half fit the description, half do not."""
    tokens: int
    """Examples of bodies with one value exchanged for something rare, of all operations together."""
    chains: int
    """Chains of calls by each caller, along the links of the description."""
    callers: tuple[str, ...] = ()
    """Who calls; everybody, if nobody is named."""


def run(sender: Sender, plan: Plan) -> None:
    """Send all of the plan to the service that the sender's world lives in."""
    operator = sender.world.residents[OPERATOR]
    document: dict[str, Any] = operator.get("/openapi.json").json()
    sender.look_around(_lists(document))
    config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
    schema = schemathesis.openapi.from_dict(document, config=config)
    operations = [found.ok() for found in schema.get_all_operations()]
    if plan.edges:
        _edges(schema, operations, sender, plan)
    for operation in operations:
        _draws(operation, sender, plan)
    _tokens(operations, document, sender, plan)
    for number, name in enumerate(_callers(sender, plan)):
        able = [
            label_of(each) for each in operations if name in sender.judge.callers(label_of(each))
        ]
        if plan.chains and able and name != ANONYMOUS:
            _chains(
                schema.include(operation_id=able), sender, name, plan.seed + number, plan.chains
            )


def _callers(sender: Sender, plan: Plan) -> tuple[str, ...]:
    return plan.callers or tuple(sender.world.residents)


def _lists(document: dict[str, Any]) -> list[str]:
    """The paths of all lists that need no id."""
    return [
        path
        for path, item in document["paths"].items()
        if "{" not in path
        and any(each["name"] == "cursor" for each in item.get("get", {}).get("parameters", ()))
    ]


def _edges(schema: BaseSchema, operations: list[APIOperation], sender: Sender, plan: Plan) -> None:
    rng = random.Random(plan.seed)  # noqa: S311 - to be repeated
    found = [
        case
        for operation in operations
        for case in schema.iter_coverage_cases(
            operation,
            generation_modes=list(GenerationMode),
            generation_config=schema.config.generation,
        )
    ]
    callers = _callers(sender, plan)
    for case in rng.sample(found, min(plan.edges, len(found))):
        sender.send(case, rng.choice(callers))


def _draws(operation: APIOperation, sender: Sender, plan: Plan) -> None:
    if not plan.draws:
        return
    callers = _callers(sender, plan)
    count = plan.draws * len(callers)
    modes = [
        _drawn(operation, mode, plan.seed, -(-count // 2))
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    cases = iter([each for each in chain(*zip_longest(*modes)) if each is not None])
    for name in callers:
        refused = 0
        for _, case in zip(range(plan.draws), cases, strict=False):
            answer = sender.send(case, name)
            if answer is not None and answer.status_code in (
                HTTPStatus.UNAUTHORIZED,
                HTTPStatus.FORBIDDEN,
            ):
                refused += 1
            if refused == REFUSALS:
                break


def _tokens(
    operations: list[APIOperation], document: dict[str, Any], sender: Sender, plan: Plan
) -> None:
    rng = random.Random(plan.seed)  # noqa: S311 - to be repeated
    found = [
        (operation, text)
        for operation in operations
        for example in _examples(operation, document)
        for text in _exchanged(example)
    ]
    for operation, text in rng.sample(found, min(plan.tokens, len(found))):
        ids = {
            each.name: f"{each.definition['schema'].get('pattern', '^x_')[1:4]}_{'0' * 32}"
            for each in operation.path_parameters
        }
        body = text.encode()
        case = operation.Case(path_parameters=ids, body=body, media_type=JSON)
        sender.send(case, rng.choice(sender.judge.callers(label_of(operation)) or [OPERATOR]))


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


def _drawn(operation: APIOperation, mode: GenerationMode, seed: int, count: int) -> list[Case]:
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


def _chains(schema: BaseSchema, sender: Sender, name: str, seed: int, count: int) -> None:
    for turn in range(TURNS):
        machine = _machine(schema, lambda case: sender.send(case, name))
        hypothesis.seed(seed * TURNS + turn)(machine)
        # A chain that begins like an earlier one may be answered otherwise: hypothesis gives up then.
        with suppress(hypothesis.errors.Flaky):
            machine.run(settings=_settings(-(-count // TURNS), stateful_step_count=STEPS))


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
