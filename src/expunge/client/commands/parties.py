"""`expunge parties …`, `expunge keys …` (operators), `expunge me`, `expunge methods`."""

from typing import Annotated, get_args

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.resources import Role

parties = typer.Typer(no_args_is_help=True, help="Who takes part (operators).")
keys = typer.Typer(no_args_is_help=True, help="API keys (operators).")


@command(parties, "create")
def create_party(
    session: Session,
    name: Annotated[str, typer.Argument(help="Any name.")],
    role: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Role))}.")],
) -> None:
    """Create a party.

    Example: expunge parties create "Ada's photos" --role data_owner
    """
    for known in get_args(Role):
        if role == known:
            party = session.client.create_party(name, known)
            session.show(party, hint=f"Next: expunge keys create {party.id}")
            return
    raise CommandError(f"unknown role {role!r}; known are {', '.join(get_args(Role))}")


@command(parties, "list")
def list_parties(session: Session) -> None:
    """List all parties."""
    session.show_list(
        session.client.parties(),
        [
            ("id", lambda item: item.id),
            ("name", lambda item: item.name),
            ("role", lambda item: item.role),
        ],
    )


@command(keys, "create")
def create_key(
    session: Session,
    party: Annotated[str, typer.Argument(metavar="PARTY", help="Id, pty_…")],
    days: Annotated[int | None, typer.Option(help="Days until it expires.")] = None,
) -> None:
    """Create a key for a party; its secret is shown this once."""
    session.show(session.client.create_key(party, days))


@command(keys, "revoke")
def revoke_key(
    session: Session, key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id, key_…")]
) -> None:
    """Make a key useless from now on."""
    session.client.revoke_key(key_id)
    if not session.as_json:
        session.out.print(f"{key_id} is revoked", highlight=False)


def add_to(app: typer.Typer) -> None:
    """Register the commands that stand at the top."""
    command(app, "me")(me)
    command(app, "methods")(methods)


def me(session: Session) -> None:
    """Show whose key you use."""
    session.show(session.client.me())


def methods(session: Session) -> None:
    """List the unlearning methods with their parameters, defaults and bounds."""
    found = session.client.methods()
    if session.as_json:
        session.print_json([method.model_dump(mode="json") for method in found])
        return
    for method in found:
        session.out.print(f"[bold]{method.id}[/] {method.title} ({', '.join(method.frameworks)})")
        session.out.print(f"  {method.summary}")
        session.out.print(f"  [dim]{method.source}")
        for name, schema in method.parameters.get("properties", {}).items():
            session.out.print(f"  {name} = {schema.get('default')}  [dim]{_bounds(schema)}")


def _bounds(schema: dict[str, object]) -> str:
    symbols = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    parts = [f"{symbol} {schema[name]}" for name, symbol in symbols.items() if name in schema]
    if "enum" in schema:
        parts.append(f"one of {schema['enum']}")
    return ", ".join(parts)
