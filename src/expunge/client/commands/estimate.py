"""`expunge estimate`: what a removal would take, by method."""

from typing import Annotated

import typer

from expunge.client.commands.session import Session, command, setting
from expunge.client.telling import estimate_table


def add_to(app: typer.Typer) -> None:
    """Register the command; it stands at the top, not in a group."""
    command(app, "estimate")(estimate)


def estimate(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Id, mdl_…")],
    datasets: Annotated[
        list[str], typer.Argument(metavar="DATASET", help="What would be forgotten, dst_…")
    ],
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(help="METHOD or METHOD:name=value,…; repeatable; all methods if left out."),
    ] = None,
) -> None:
    """Say how long each method would take to forget data sets, and what it would cost.

    Example: expunge estimate mdl_… dst_… --method fine_tune:epochs=5 --method retrain:epochs=200
    """
    chosen = [setting(text) for text in method] if method else None
    session.show_table(session.client.estimate(model, datasets, chosen), estimate_table)
