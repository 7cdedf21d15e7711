"""What every command shares: the service's address and key, JSON or text, problems as exit status 1."""

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from expunge.client.packing import PackingError
from expunge.client.problems import (
    DoubtError,
    LostSecretError,
    ProblemError,
    UnfinishedError,
    UnreachableError,
)
from expunge.client.sdk import DEFAULT_URL, Client

Url = Annotated[
    str,
    typer.Option("--url", envvar="EXPUNGE_URL", help="Address of the service."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="EXPUNGE_KEY",
        show_envvar=True,
        help="Your API key. The variable keeps it out of the process list.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

LONGEST_LINE = 10_000
"""Characters, where no terminal wraps them."""

Column = tuple[str, Callable[[Any], object]]


class CommandError(Exception):
    """The command cannot do what was asked; the message says why."""


@dataclass(frozen=True)
class Session:
    """One run of a command."""

    client: Client
    out: Console
    as_json: bool

    def show(self, resource: BaseModel, *, hint: str | None = None) -> None:
        """Print one resource; `hint` says what to do next and is left out of JSON."""
        if self.as_json:
            self.print_json(resource.model_dump(mode="json"))
            return
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in resource.model_dump(mode="json").items():
            if value not in (None, [], {}):
                table.add_row(f"[bold]{name}", Text(_text(value)))
        print_whole(self.out, table)
        if hint:
            self.hint(hint)

    def hint(self, text: str) -> None:
        """Print what to do next, on one line also in a narrow terminal: commands in it are there to be copied."""
        if not self.as_json:
            self.out.print(f"[dim]{escape(text)}", highlight=False, soft_wrap=True)

    def show_list(self, resources: Iterable[BaseModel], columns: Iterable[Column]) -> None:
        """Print a list: a table with these columns, or a JSON array of everything."""
        items = list(resources)
        if self.as_json:
            self.print_json([item.model_dump(mode="json") for item in items])
            return
        table = Table()
        picks = list(columns)
        for title, _ in picks:
            table.add_column(title, overflow="fold")
        for item in items:
            table.add_row(*(Text(_text(pick(item))) for _, pick in picks))
        print_whole(self.out, table if items else "[dim]none")

    def show_table(self, resources: Iterable[BaseModel], render: Callable[..., Any]) -> None:
        """Print resources as `render` draws them, or as a JSON array of everything."""
        items = list(resources)
        if self.as_json:
            self.print_json([item.model_dump(mode="json") for item in items])
        else:
            print_whole(self.out, render(items) if items else "[dim]none")

    def print_json(self, value: Any) -> None:
        """One JSON value on one line."""
        self.out.print(json.dumps(value), soft_wrap=True, highlight=False, markup=False)


def console(*, stderr: bool = False) -> Console:
    """Where a command prints; lines are broken in a terminal alone."""
    made = Console(stderr=stderr)
    made.soft_wrap = not made.is_terminal
    return made


def print_whole(out: Console, renderable: RenderableType) -> None:
    """Print so that a file or another program gets every id and name on one line, however long it is."""
    if out.is_terminal:
        out.print(renderable)
        return
    measured = out.measure(renderable, options=out.options.update(width=LONGEST_LINE))
    Console(file=out.file, width=max(measured.maximum, out.width)).print(renderable)


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function whose first parameter is the Session as a command of `app`.

    Adds --url, --key and --json; a problem ends the command with one paragraph and status 1.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(url: str, key: str | None, as_json: bool, **arguments: Any) -> None:
            run_session(functools.partial(function, **arguments), url, key, as_json=as_json)

        own = list(inspect.signature(function).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter("url", keyword, default=DEFAULT_URL, annotation=Url),
            inspect.Parameter("key", keyword, default=None, annotation=Key),
            inspect.Parameter("as_json", keyword, default=False, annotation=AsJson),
        ]
        parameters = [*(parameter.replace(kind=keyword) for parameter in own), *shared]
        hints = get_type_hints(function, include_extras=True)
        names = {parameter.name for parameter in parameters}
        described: Any = run
        described.__annotations__ = {key: hint for key, hint in hints.items() if key in names} | {
            parameter.name: parameter.annotation for parameter in shared
        }
        described.__signature__ = inspect.Signature(parameters)
        del described.__wrapped__
        app.command(name)(run)
        return function

    return register


def run_session(
    function: Callable[[Session], None], url: str, key: str | None, *, as_json: bool
) -> None:
    """Run a command's function; what goes wrong is said on stderr."""
    try:
        with Client(url, key) as client:
            function(Session(client, console(), as_json))
    except ProblemError as error:
        if as_json:
            document = {"type": error.type, "status": error.status, "title": error.title}
            fail(json.dumps(document | {"detail": error.detail} | error.extensions), plain=True)
        hint = (
            " Set EXPUNGE_KEY or give --key."
            if error.status == HTTPStatus.UNAUTHORIZED and not key
            else ""
        )
        fail(f"{error}.{hint}".replace("..", "."))
    except (
        UnreachableError,
        UnfinishedError,
        LostSecretError,
        PackingError,
        CommandError,
        DoubtError,
        OSError,
    ) as error:
        fail(str(error))


def fail(message: str, *, plain: bool = False) -> None:
    """Print why on stderr and end with status 1."""
    text = Text(message) if plain else Text.assemble(("Error:", "bold red"), f" {message}")
    console(stderr=True).print(text, soft_wrap=plain or None)
    raise typer.Exit(1)


def setting(text: str) -> dict[str, Any]:
    """`fine_tune:epochs=5,learning_rate=0.01` as method and parameters."""
    method, _, params = text.partition(":")
    return {"method": method, "params": pairs(filter(None, params.split(",")))}


def pairs(given: Iterable[str] | None) -> dict[str, Any]:
    """`["epochs=5", "name=x"]` as a mapping; values are JSON where they can be, else text."""
    result: dict[str, Any] = {}
    for pair in given or []:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise CommandError(f"{pair!r} is not of the form name=value")
        result[name] = value_of(value)
    return result


def value_of(text: str) -> Any:
    """JSON where it is, else text; so is a number that JSON cannot carry, which the service refuses."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except ValueError:
        return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _text(value: object) -> str:
    if isinstance(value, Mapping | list):
        return json.dumps(value)
    return "" if value is None else str(value)
