"""`expunge demo`: starts a stack of its own, tells the story, writes the summary, stops the stack."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from expunge.client import ProblemError, UnreachableError
from expunge.client.problems import UnfinishedError
from expunge.embedded import demonstration
from expunge.embedded.demonstration.cast import Cast, DemoError, gathered
from expunge.embedded.demonstration.setting import FULL, SAMPLE, Setting
from expunge.embedded.demonstration.split import PARTS, SplitError, split
from expunge.embedded.demonstration.story import Story
from expunge.embedded.demonstration.summary import Run, print_summary, write_summary
from expunge.embedded.processes import ProcessFailedError
from expunge.embedded.signals import stopped_by_signals
from expunge.embedded.stack import Stack, StackError, remove_state
from expunge.embedded.watchdog import watched
from expunge.formats.archives import ShardError

SAMPLE_FOLDER = Path(demonstration.__file__).parents[1] / "sample"
EXPECTED = (
    DemoError,
    ProblemError,
    ProcessFailedError,
    ShardError,
    SplitError,
    StackError,
    UnfinishedError,
    UnreachableError,
)


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of CIFAR-10 shards, train-NN.tar and test-NN.tar, instead of the sample."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures, summary and state.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of training and audits.", min=0)] = 0,
) -> None:
    """Show the whole thing on real images: train, ask to be forgotten, unlearn, audit.

    Starts PostgreSQL, Redis, API and workers on this machine, lets a model owner train an encoder
    on its own and two data owners' images, lets both owners ask to be forgotten, and audits for
    each what happened to their images. Leaves pictures and summary.json, and nothing running.
    """
    console = Console()
    with stopped_by_signals():
        try:
            run_demo(console, SAMPLE if data is None else FULL, data, out.resolve(), seed)
        except EXPECTED as error:
            Console(stderr=True).print(f"\nError: {error}", markup=False, highlight=False)
            raise typer.Exit(1) from None


def run_demo(console: Console, setting: Setting, data: Path | None, out: Path, seed: int) -> None:
    """Run the demo; `data` None takes the bundled sample. What an earlier run left is replaced.

    Raises:
        One of `EXPECTED`: nothing runs any more, `out`/state/logs says what happened.
    """
    started = time.monotonic()
    state = out / "state"
    remove_state(state)
    out.mkdir(parents=True, exist_ok=True)
    shards = _sample() if data is None else split(data, out / "shards", setting.sizes)
    console.print("[bold]Expunge demo[/] real images, real services, all on this machine")
    console.print("  starting PostgreSQL, Redis, the API, a dispatcher and two workers …")
    with Stack(state, port=0) as stack, watched(stack):
        startup_seconds = time.monotonic() - started
        console.print(
            f"  ready after {startup_seconds:.1f} s at {stack.url}, logs in {stack.logs}",
            highlight=False,
            soft_wrap=True,
        )
        story = Story(console, setting, seed, out, stack.logs)
        with gathered(stack.url, stack.operator) as cast:
            outcome = story.tell(cast, shards)
            keys = _write_keys(out / "keys.env", cast)
    shutil.rmtree(out / "shards", ignore_errors=True)
    run = Run(
        setting=setting,
        seed=seed,
        data="bundled sample of CIFAR-10" if data is None else "CIFAR-10 shards",
        startup_seconds=startup_seconds,
        total_seconds=time.monotonic() - started,
    )
    write_summary(out / "summary.json", outcome, run)
    print_summary(console, outcome, run)
    _what_next(console, out, keys, outcome.owners[0].audit.id)


def _sample() -> dict[str, list[Path]]:
    return {part: [SAMPLE_FOLDER / f"{part}.tar"] for part in PARTS}


def _write_keys(path: Path, cast: Cast) -> Path:
    """The parties' keys for a shell, readable by this user only."""
    actors = (cast.model_owner, *cast.owners)
    lines = [f"{actor.slug.replace('-', '_').upper()}_KEY={actor.key.secret}\n" for actor in actors]
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(lines)
    return path


def _program() -> str:
    """How this command line is called from here."""
    own = Path(sys.argv[0]).absolute()
    on_path = shutil.which(own.name)
    if on_path is not None and Path(on_path).absolute() == own:
        return own.name
    return str(own.relative_to(Path.cwd())) if own.is_relative_to(Path.cwd()) else str(own)


def _what_next(console: Console, out: Path, keys: Path, audit_id: str) -> None:
    shown = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    console.print("\n[bold]Left for you[/]")
    console.print(
        f"  {shown}/summary.json, and the heat maps in {shown}/ada and {shown}/ben",
        highlight=False,
        soft_wrap=True,
    )
    console.print("\n[bold]Try next[/] (nothing is running now)")
    program = _program()
    lines = (
        f"{program} up --state {shown}/state    # the same service, with all of this in it",
        f". {shown}/{keys.name}    # in another terminal: the parties' keys",
        f'curl -H "Authorization: Bearer $ADA_KEY" http://127.0.0.1:8000/audits/{audit_id}',
        'curl -H "Authorization: Bearer $MODEL_OWNER_KEY" http://127.0.0.1:8000/jobs',
        f"EXPUNGE_KEY=$BEN_KEY {program} requests list",
    )
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
