"""The `expunge` command: the client's command line plus what runs on this machine: services, and encoders.

Also `python -m expunge.cli`.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from expunge.client.cli import build_app
from expunge.client.commands.encodings import OUTPUTS_FILE, RECEIPT_FILE
from expunge.client.commands.session import fail
from expunge.embedded.commands import add_to
from expunge.registry import commands as operating

app = build_app()
add_to(app)
operating.add_to(app)


@app.command("spot-check")
def spot_check(
    encoding: Annotated[
        Path, typer.Argument(help="Folder that `expunge encode --out` or `audit --local` filled.")
    ],
    *,
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint file, before or after.")],
    shards: Annotated[list[Path], typer.Option(help="Shards with encoded samples; repeatable.")],
    samples: Annotated[int, typer.Option(min=1, help="How many to recompute.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Which ones: a seed that you think up.")] = 0,
    own_views: Annotated[
        Path | None, typer.Option(help="The tar, if the views were yours.")
    ] = None,
) -> None:
    """Recompute some outputs of an encoding from a checkpoint file, and compare.

    Ends with status 1 if they differ by more than two machines' arithmetic does. Asks no service.
    """
    from expunge.evidence.encoding import check  # noqa: PLC0415 - other commands need no scipy
    from expunge.unlearning import spot_check as checking  # noqa: PLC0415 - nor torch

    try:
        receipt = json.loads((encoding / RECEIPT_FILE).read_text())["statement"]
        encoded = check(receipt, (encoding / OUTPUTS_FILE).read_bytes())
        found = checking.spot_check(
            encoded, receipt, checkpoint, shards, samples=samples, seed=seed, own_views=own_views
        )
    # Every error of files is a ValueError whose message a person can act on.
    except (ValueError, KeyError, OSError) as error:
        fail(str(error))
    words = f"{len(found.keys)} samples under the checkpoint {found.side}: largest difference "
    words += f"{found.difference:.2g}"
    if not found.agrees:
        fail(f"{words}; these outputs are not those of this checkpoint")
    Console().print(f"{words}; the outputs are those of this checkpoint", highlight=False)


if __name__ == "__main__":
    app()
