"""`expunge up`: the one-machine stack in the foreground."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from expunge.embedded.demonstration.command import demo
from expunge.embedded.processes import ProcessFailedError
from expunge.embedded.signals import stopped_by_signals
from expunge.embedded.stack import DEFAULT_PORT, Stack, StackError

DEFAULT_STATE = Path("state")
MOST_API_PROCESSES = 2
"""Unless asked for more: they answer some 500 reads a second on two cores."""
WATCH_SECONDS = 0.5


def add_to(app: typer.Typer) -> None:
    """Register the commands that start processes."""
    app.command("up")(up)
    app.command("demo")(demo)


def up(
    state: Annotated[
        Path, typer.Option(help="Folder that keeps everything; made if missing.")
    ] = DEFAULT_STATE,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = (
        DEFAULT_PORT
    ),
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="A worker that trains, on auto, cpu, cuda or e.g. cuda:1; repeat it for more "
            "workers. One worker on EXPUNGE_DEVICE if missing."
        ),
    ] = None,
    api_processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that answer calls; if missing, one for each core, two at most."
        ),
    ] = None,
) -> None:
    """Run the whole service on this machine until Ctrl-C.

    PostgreSQL, Redis, API, dispatcher and workers, reachable from this machine only. A process
    that dies is started again; the same folder another time goes on where it was.
    """
    console = Console(highlight=False)
    with stopped_by_signals():
        try:
            console.print(f"Starting over {state.resolve()} …")
            started = time.monotonic()
            answering = api_processes or min(len(os.sched_getaffinity(0)), MOST_API_PROCESSES)
            with Stack(state, port, devices=device or (), api_processes=answering) as stack:
                _greet(console, stack, time.monotonic() - started)
                _watch(console, stack)
        except (ProcessFailedError, StackError) as error:
            Console(stderr=True).print(f"Error: {error}", markup=False, highlight=False)
            raise typer.Exit(1) from None
    console.print("Stopped; everything is kept in the state folder.")


def _greet(console: Console, stack: Stack, seconds: float) -> None:
    console.print(f"Ready after {seconds:.1f} s at [bold]{stack.url}[/] (API reference: /docs)")
    console.print(f"Logs: {stack.logs}")
    if stack.is_new:
        console.print(
            "\nFirst operator key, shown this once (kept in operator.json of the state folder):\n"
            f"  [bold]{stack.operator.secret}[/]"
        )
    console.print(
        "\nTry in another terminal:\n"
        f"  export EXPUNGE_URL={stack.url} EXPUNGE_KEY=<key>\n"
        "  expunge methods\n"
        '  expunge parties create "Ada" --role data_owner\n'
        "\nCtrl-C stops everything.",
        soft_wrap=True,
    )


def _watch(console: Console, stack: Stack) -> None:
    try:
        while True:
            for ending in stack.revive():
                console.print(str(ending), markup=False, soft_wrap=True)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        console.print("Stopping …")
