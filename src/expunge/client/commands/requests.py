"""`expunge requests …`: create, watch, list, show, decide, withdraw, log."""

from typing import Annotated

import typer

from expunge.client.commands.jobs import show_events
from expunge.client.commands.session import CommandError, Session, command, pairs
from expunge.client.resources import RemovalRequest
from expunge.client.telling import clock, due, log_table, residue_table

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
            ("due", due),
        ],
    )


@command(app, "show")
def show(session: Session, request: RequestId) -> None:
    """Show one request, and how long it has been waited for."""
    _show(session, session.client.request(request))


@command(app, "approve")
def approve(session: Session, request: RequestId) -> None:
    """Take up a request to your model that waits for you (where the policy says manual)."""
    _show(session, session.client.approve_request(request))


@command(app, "reject")
def reject(
    session: Session,
    request: RequestId,
    reason: Annotated[str, typer.Option(help="Why; whoever asked reads it.")],
) -> None:
    """Refuse a request to your model that waits for you.

    Example: expunge requests reject req_… --reason "held as evidence until May"
    """
    _show(session, session.client.reject_request(request, reason))


@command(app, "withdraw")
def withdraw(session: Session, request: RequestId) -> None:
    """Take back your own request; possible until its job starts."""
    _show(session, session.client.withdraw_request(request))


@command(app, "log")
def log(session: Session, request: RequestId) -> None:
    """Tell everything that happened to a request, in order."""
    session.show_table(session.client.request_log(request), log_table)


@command(app, "residue")
def residue(session: Session, request: RequestId) -> None:
    """Tell what still exists of a request's data, where, why and until when."""
    session.show_table(session.client.residue(request), residue_table)


def _show(session: Session, request: RemovalRequest) -> None:
    session.show(request)
    if not session.as_json:
        session.out.print(clock(request), highlight=False)


def _watch(session: Session, request_id: str) -> None:
    ended = show_events(session, session.client.watch_request(request_id), "request")
    request = session.client.request(request_id)
    if not session.as_json:
        _show(session, request)
        if request.result is not None:
            session.hint(f"Next: expunge audit {request_id}")
    if ended.state != "completed":
        raise CommandError(f"the request is {ended.state}: {request.reason or 'no reason given'}")
