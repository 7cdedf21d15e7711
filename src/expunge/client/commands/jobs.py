"""`expunge jobs …`: list, show, manifest, watch, cancel, priority, log."""

from collections.abc import Iterable
from typing import Annotated

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.progress import Followed, follow
from expunge.client.resources import End, Event, Progress
from expunge.client.telling import finished, log_table

app = typer.Typer(no_args_is_help=True, help="Training and unlearning runs (model owners).")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id, job_…")]


@command(app, "list")
def list_(session: Session) -> None:
    """List the jobs of your models."""
    session.show_list(
        session.client.jobs(),
        [
            ("id", lambda item: item.id),
            ("kind", lambda item: item.kind),
            ("method", lambda item: item.method),
            ("state", lambda item: item.state),
            ("priority", lambda item: item.priority),
            ("attempt", lambda item: item.attempt),
            ("requests", lambda item: len(item.request_ids)),
            ("created", lambda item: f"{item.created_at:%Y-%m-%d %H:%M}"),
        ],
    )


@command(app, "show")
def show(session: Session, job: JobId) -> None:
    """Show one job, with its measurements when it has succeeded."""
    session.show(session.client.job(job))


@command(app, "manifest")
def manifest(session: Session, job: JobId) -> None:
    """Show all that decided what a run gave: with --json for whoever is to repeat it."""
    session.show(session.client.manifest(job))


@command(app, "cancel")
def cancel(
    session: Session,
    job: JobId,
    reason: Annotated[
        str | None, typer.Option(help="Why; the owners of its requests read it.")
    ] = None,
) -> None:
    """End a job that waits or runs, and all its requests; the model stays as it is."""
    session.show(session.client.cancel_job(job, reason))


@command(app, "priority")
def priority(
    session: Session,
    job: JobId,
    priority: Annotated[
        int, typer.Argument(metavar="PRIORITY", help="-9 to 9; more goes first.", min=-9, max=9)
    ],
) -> None:
    """Let a waiting job go before or after others of yours.

    Example: expunge jobs priority job_… 5; a negative one after --: expunge jobs priority job_… -- -5
    """
    session.show(session.client.set_priority(job, priority))


@command(app, "log")
def log(session: Session, job: JobId) -> None:
    """Tell a job's whole life in order: who, when, which attempt, why."""
    session.show_table(session.client.job_log(job), log_table)


@command(app, "watch")
def watch(session: Session, job: JobId) -> None:
    """Follow a job until it ends; status 1 if it does not succeed."""
    watch_job(session, job)


def watch_job(session: Session, job_id: str) -> None:
    """Show a job's events, then what it gave; CommandError if it did not succeed."""
    ended = show_events(session, session.client.watch_job(job_id), "job")
    job = session.client.job(job_id)
    if ended.state != "succeeded":
        session.hint(f"Next: expunge jobs log {job_id}")
        raise CommandError(f"the job {ended.state}: {job.reason or 'no reason given'}")
    if session.as_json:
        return
    for line in finished(job):
        session.out.print(line, highlight=False, markup=False)
    given = job.result_checkpoint_id if job.kind == "pretrain" else None
    session.hint(
        f"Next: expunge models download {given}"
        if given
        else f"Next: expunge models lineage {job.model_id}"
    )


def show_events(session: Session, events: Iterable[Event], title: str) -> Followed:
    """Show events as they come; as JSON, one line each."""
    if not session.as_json:
        return follow(events, session.out, title)
    state, reason = "unknown", None
    for event in events:
        kind = "end" if isinstance(event, End) else "state"
        if isinstance(event, Progress):
            kind = "progress"
        else:
            state, reason = event.state, getattr(event, "reason", None) or reason
        session.print_json({"event": kind, **event.model_dump(mode="json")})
    return Followed(state, reason, None)
