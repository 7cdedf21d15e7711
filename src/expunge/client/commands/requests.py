"""`expunge requests …`: create, watch, list, show."""

from typing import Annotated

import typer

from expunge.client.commands.jobs import show_events
from expunge.client.commands.session import CommandError, Session, command, pairs

app = typer.Typer(no_args_is_help=True, help="Ask a model to forget your data sets.")

RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="Id, req_…")]


@command(app, "create")
def create(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Id, mdl_…")],
    *,
    dataset: Annotated[
        list[str], typer.Option("--dataset", help="What to forget, dst_…; repeatable.")
    ],
    method: Annotated[
        str, typer.Option(help="Unlearning method; `expunge methods` lists them.")
    ] = "alignment_calibration",
    param: Annotated[
        list[str] | None, typer.Option(help="Parameter of the method, e.g. beta=8; repeatable.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the request.")] = False,
) -> None:
    """Ask a model to forget data sets of yours.

    Example: expunge requests create mdl_… --dataset dst_… --param epochs=10 --watch
    """
    request = session.client.create_request(model, dataset, method, pairs(param))
    if watch:
        _watch(session, request.id)
    else:
        session.show(request, hint=f"Next: expunge requests watch {request.id}")


@command(app, "watch")
def watch(session: Session, request: RequestId) -> None:
    """Follow a request until it is final; status 1 if it is not completed."""
    _watch(session, request)


@command(app, "list")
def list_(session: Session) -> None:
    """List your requests, and those about your models."""
    session.show_list(
        session.client.requests(),
        [
            ("id", lambda item: item.id),
            ("model", lambda item: item.model_id),
            ("method", lambda item: item.method),
            ("data sets", lambda item: len(item.dataset_ids)),
            ("state", lambda item: item.state),
            ("created", lambda item: f"{item.created_at:%Y-%m-%d %H:%M}"),
        ],
    )


@command(app, "show")
def show(session: Session, request: RequestId) -> None:
    """Show one request."""
    session.show(session.client.request(request))


def _watch(session: Session, request_id: str) -> None:
    ended = show_events(session, session.client.watch_request(request_id), "request")
    request = session.client.request(request_id)
    if not session.as_json:
        session.show(request, hint=f"Next: expunge audit {request_id}")
    if ended.state != "completed":
        raise CommandError(f"the request is {ended.state}: {request.reason or 'no reason given'}")
