"""`expunge alerts …`: list, acknowledge."""

from typing import Annotated

import typer

from expunge.client.commands.session import Session, command

app = typer.Typer(no_args_is_help=True, help="Later heads that know forgotten samples again.")


@command(app, "list")
def list_(session: Session) -> None:
    """List alerts about your requests, and about requests to your models."""
    session.show_list(
        session.client.alerts(),
        [
            ("id", lambda item: item.id),
            ("request", lambda item: item.request_id),
            ("head", lambda item: item.checkpoint_id),
            ("raised", lambda item: f"{item.created_at:%Y-%m-%d %H:%M}"),
            ("what", lambda item: item.sentence),
            ("acknowledged", lambda item: "" if item.acknowledged_at is None else "yes"),
        ],
    )


@command(app, "acknowledge")
def acknowledge(
    session: Session,
    alert: Annotated[str, typer.Argument(metavar="ALERT", help="Id, alr_…")],
) -> None:
    """Say, as the model's owner, that you have taken notice."""
    session.show(session.client.acknowledge_alert(alert))
