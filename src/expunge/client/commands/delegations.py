"""`expunge delegations …`: auditors who act for an owner."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from expunge.client.commands.session import Session, command

app = typer.Typer(no_args_is_help=True, help="Auditors who may audit your data sets, for a time.")


@command(app, "create")
def create_delegation(
    session: Session,
    auditor: Annotated[str, typer.Argument(metavar="AUDITOR", help="A party, pty_…")],
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Sealed, dst_…")],
    *,
    days: Annotated[int, typer.Option(help="Days until it ends; at most a year.")] = 30,
) -> None:
    """Let an auditor see the samples' names of your data sets and audit what became of them.

    Example: expunge delegations create pty_… dst_… --days 14
    """
    end = datetime.now(UTC) + timedelta(days=days)
    made = session.client.delegate(auditor, datasets, end)
    session.show(made, hint=f"To end it before: expunge delegations withdraw {made.id}")


@command(app, "list")
def list_delegations(session: Session) -> None:
    """List delegations that you gave or were given, ended ones too."""
    session.show_list(
        session.client.delegations(),
        [
            ("id", lambda item: item.id),
            ("auditor", lambda item: item.auditor_id),
            ("data sets", lambda item: ", ".join(item.dataset_ids)),
            ("until", lambda item: f"{item.withdrawn_at or item.expires_at:%Y-%m-%d %H:%M}"),
            ("withdrawn", lambda item: "yes" if item.withdrawn_at else ""),
        ],
    )


@command(app, "withdraw")
def withdraw_delegation(
    session: Session,
    delegation: Annotated[str, typer.Argument(metavar="DELEGATION", help="Id, dlg_…")],
) -> None:
    """End a delegation now: the auditor sees nothing of it any more."""
    session.client.withdraw_delegation(delegation)
    if not session.as_json:
        session.out.print(f"{delegation} is withdrawn", highlight=False)
