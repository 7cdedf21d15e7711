"""`expunge log …`: read own rows of the log, tree heads and proofs, and check them on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.log import LogCheck, LogRow
from expunge.client.record import BrokenRecord, Memory, Verified, check_proof, verify
from expunge.evidence.signing import PublicKey, UnusableKey

SHOWN_HASH_CHARS = 16

app = typer.Typer(
    no_args_is_help=True, help="Read the sealed log, and check that nobody rewrote it."
)

KeyFile = Annotated[
    Path | None,
    typer.Option("--signed-by", help="Public key of the service (PEM) that you trust."),
]


@command(app, "list")
def list_(
    session: Session,
    subject: Annotated[
        str | None, typer.Option(help="Only what happened to this id, e.g. req_…")
    ] = None,
) -> None:
    """List what you did and what happened to what is yours, oldest first."""
    session.show_list(
        session.client.log_rows(subject),
        [
            ("row", lambda row: row.seq),
            ("when (UTC)", lambda row: row.at[:19].replace("T", " ")),
            ("who", lambda row: row.actor),
            ("what happened to", lambda row: row.subject_id),
            ("event", lambda row: row.event),
            ("seal", _seal),
        ],
    )


@command(app, "head")
def head(
    session: Session,
    size: Annotated[int | None, typer.Option(help="Of the log when it had so many rows.")] = None,
) -> None:
    """Show the newest tree head. Keep it: what it covers cannot be rewritten unnoticed."""
    found = session.client.log_head(size)
    hint = None if found.signed else "It is not signed: this service has no signing key."
    session.show(found, hint=hint)


@command(app, "prove")
def prove(
    session: Session,
    row: Annotated[int, typer.Argument(metavar="ROW", help="Number, as `expunge log list` shows.")],
    signed_by: KeyFile = None,
) -> None:
    """Get the proof that a row is part of the log, and check it on this machine.

    With --json it is printed complete, for whoever is to check it without the service.
    """
    proof = session.client.log_proof(row)
    try:
        check_proof(proof, session.client.signing_keys(), _key(signed_by))
    except BrokenRecord as error:
        raise CommandError(f"broken: {error}") from error
    if session.as_json:
        session.print_json(proof.model_dump(mode="json"))
        return
    session.out.print(
        f"Row {row} is at position {proof.row.position} of the log of {proof.head.size} rows, "
        f"root {proof.head.root_hash[:SHOWN_HASH_CHARS]}…, {_signature(proof.head.signed)}.",
        highlight=False,
    )


@command(app, "verify")
def verify_(
    session: Session,
    state: Annotated[
        Path | None,
        typer.Option(help="File that remembers the last head seen; one of your own by default."),
    ] = None,
    signed_by: KeyFile = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Also let the service check everybody's rows, part by part."),
    ] = False,
) -> None:
    """Check all your rows on this machine, and that the log continues what you saw last time.

    Status 1 and the broken link if anything does not hold.
    """
    memory, url = Memory(state), session.client.base_url
    try:
        found = verify(session.client, memory.recall(url), _key(signed_by))
    except BrokenRecord as error:
        raise CommandError(f"broken: {error}") from error
    parts = [_unbroken(part) for part in session.client.log_check()] if whole else []
    memory.remember(url, found.seen)
    _tell(session, found, parts)


def _tell(session: Session, found: Verified, parts: list[LogCheck]) -> None:
    since = found.since
    if session.as_json:
        session.print_json(
            {
                "ok": True,
                "head": found.head.model_dump(mode="json"),
                "proven": found.proven,
                "waiting": found.waiting,
                "since": None if since is None else since.size,
                "checked_by_service": parts[-1].end if parts else None,
            }
        )
        return
    lines = [f"Tree head: {found.head.size} rows, {_signature(found.head.signed)}."]
    lines.append(
        f"It continues the log of {since.size} rows that you saw, of {since.at}."
        if since
        else "It is the first that you see; from now on rewriting what it covers is noticed."
    )
    lines.append(f"Your rows: {found.proven} proven, {found.waiting} newer than the head.")
    if parts:
        lines.append(f"The service found all {parts[-1].end} rows in order.")
    for line in lines:
        session.out.print(f"[green]OK[/] {line}", highlight=False)


def _unbroken(part: LogCheck) -> LogCheck:
    if part.broken is not None:
        broken = part.broken
        places = (("row", broken.seq), ("position", broken.position), ("head", broken.size))
        where = ", ".join(f"{name} {place}" for name, place in places if place is not None)
        detail = f": {broken.detail}" if broken.detail else ""
        raise CommandError(f"broken: the service found {broken.kind} at {where}{detail}")
    return part


def _key(path: Path | None) -> PublicKey | None:
    try:
        return None if path is None else PublicKey.from_pem(path.read_bytes())
    except UnusableKey as error:
        raise CommandError(f"{path}: {error}") from error


def _signature(signed: bool) -> str:
    return "signed" if signed else "not signed"


def _seal(row: LogRow) -> str:
    return "waits" if row.leaf_hash is None else f"{row.position}: {row.leaf_hash[:8]}…"
