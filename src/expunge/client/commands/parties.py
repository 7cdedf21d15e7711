"""`expunge parties …` (operators), `expunge keys …`, `expunge me`, `expunge methods`."""

from datetime import datetime
from typing import Annotated, get_args

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.parties import ListedKey
from expunge.client.resources import Role, Scope

parties = typer.Typer(no_args_is_help=True, help="Who takes part (operators).")
keys = typer.Typer(
    no_args_is_help=True, help="API keys: issued by operators, rotated by whoever holds them."
)


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
    *,
    days: Annotated[int | None, typer.Option(help="Days until it expires.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"What it is for, by default all: {', '.join(get_args(Scope))}."),
    ] = None,
) -> None:
    """Create a key for a party; its secret is shown this once.

    Example: expunge keys create pty_… --days 90 --scope read --scope audit
    """
    known: dict[str, Scope] = {each: each for each in get_args(Scope)}
    if unknown := sorted(set(scope or ()) - known.keys()):
        raise CommandError(f"unknown scope {unknown[0]!r}; known are {', '.join(known)}")
    scopes = [known[each] for each in scope] if scope else None
    session.show(session.client.create_key(party, days, scopes=scopes))


@command(keys, "list")
def list_keys(
    session: Session,
    party: Annotated[str | None, typer.Option(help="Only those of this party, pty_…")] = None,
) -> None:
    """List your keys, as an operator everybody's, without their secrets; * is the one that asks."""
    asking = None if session.as_json else session.client.me().key.id
    session.show_list(
        session.client.keys(party),
        [
            ("", lambda item: "*" if item.id == asking else ""),
            ("id", lambda item: item.id),
            ("party", lambda item: item.party_id),
            ("scopes", lambda item: ", ".join(item.scopes)),
            ("last used", lambda item: _minute(item.last_used_at)),
            ("ends", _end),
            ("replaces", lambda item: item.replaces),
        ],
    )


def _end(key: ListedKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_minute(key.revoked_at)}"
    return _minute(key.expires_at)


def _minute(at: datetime | None) -> str:
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M}"


@command(keys, "rotate")
def rotate_key(
    session: Session,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="One of yours, key_…")],
    *,
    overlap_hours: Annotated[
        int, typer.Option(help="The old secret works for so long; 0 ends it at once.")
    ] = 24,
) -> None:
    """Replace a key of yours by one with a new secret, which is shown this once."""
    session.show(session.client.rotate_key(key_id, overlap_hours=overlap_hours))


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
