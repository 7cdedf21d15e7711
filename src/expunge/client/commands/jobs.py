"""`expunge jobs …`: list, show, watch."""

from collections.abc import Iterable
from typing import Annotated

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.progress import Followed, follow
from expunge.client.resources import End, Event, Progress

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
            ("requests", lambda item: len(item.request_ids)),
            ("created", lambda item: f"{item.created_at:%Y-%m-%d %H:%M}"),
        ],
    )


@command(app, "show")
def show(session: Session, job: JobId) -> None:
    """Show one job, with its measurements when it has succeeded."""
    session.show(session.client.job(job))


@command(app, "watch")
def watch(session: Session, job: JobId) -> None:
    """Follow a job until it ends; status 1 if it does not succeed."""
    watch_job(session, job)


def watch_job(session: Session, job_id: str) -> None:
    """Show a job's events, then the job; CommandError if it did not succeed."""
    ended = show_events(session, session.client.watch_job(job_id), "job")
    job = session.client.job(job_id)
    if not session.as_json:
        session.show(job)
    if ended.state != "succeeded":
        raise CommandError(f"the job {ended.state}: {job.reason or 'no reason given'}")


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
