"""`expunge audit --replay`: a recorded audit, repeated on this machine and held against its record."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from expunge.client.commands.encodings import public_keys
from expunge.client.commands.session import CommandError, Session

if TYPE_CHECKING:
    from expunge.client.replaying import Replay

MAX_SHOWN = 20
"""Differences that are printed; `--json` has them all."""
AUDIT_PREFIX = "aud_"


def replay_here(session: Session, source: str, signing_key: Sequence[Path]) -> None:
    """Repeat the audit of a file, or of an id; status 1 if something differs."""
    keys = public_keys(signing_key)
    found = session.client.replay_audit(_recorded(session, source), keys=keys)
    if session.as_json:
        session.print_json({"same": not found.differing} | asdict(found))
    else:
        _tell(session, found)
    if found.differing:
        raise typer.Exit(1)


def _recorded(session: Session, source: str) -> Any:
    if source.startswith(AUDIT_PREFIX) and not Path(source).exists():
        return session.client.get_audit(source).model_dump(mode="json", exclude_unset=True)
    try:
        return json.loads(Path(source).read_bytes())
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{source} is no JSON") from error


def _tell(session: Session, found: "Replay") -> None:
    # What stands in a file is no markup.
    name = escape(found.audit_id)
    signed = f"signed by {found.signed_by}" if found.signed_by else "signature not checked"
    if not found.differing:
        session.out.print(
            f"[bold]Audit {name} is repeated:[/] {found.compared} digests and numbers are "
            f"as recorded, to {found.largest_difference:.1g}.",
            highlight=False,
        )
    else:
        session.out.print(
            f"[bold red]Audit {name} is not repeated:[/] {len(found.differing)} of "
            f"{found.compared} digests and numbers differ.",
            highlight=False,
        )
        table = Table("what", "recorded", "now", box=None, pad_edge=False)
        for each in found.differing[:MAX_SHOWN]:
            table.add_row(*(escape(str(cell)) for cell in (each.place, each.recorded, each.found)))
        session.out.print(table)
        if len(found.differing) > MAX_SHOWN:
            session.out.print(f"and {len(found.differing) - MAX_SHOWN} more (--json)")
    session.out.print(f"[dim]outputs: encoding {found.encoding_id}, {signed}", highlight=False)
