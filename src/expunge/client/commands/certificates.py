"""`expunge certificate`, `signing-keys` and `verify`: papers about removals, and checking them without the service."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge.client.certificates import told
from expunge.client.commands.session import (
    AsJson,
    CommandError,
    Session,
    command,
    fail,
    print_whole,
)
from expunge.client.problems import DoubtError
from expunge.client.reports import Audit
from expunge.evidence.signing import BadSignature, PublicKey, UnusableKey
from expunge.evidence.succession import KnownKey
from expunge.evidence.verification import Given, Link, rows_file, verified
from expunge.formats.digests import sha256_file

COLOURS = {"OK": "green", "BROKEN": "bold red", "NOT CHECKED": "yellow"}


def add_to(app: typer.Typer) -> None:
    """Register the commands; they stand at the top, not in a group."""
    command(app, "certificate")(certificate)
    command(app, "signing-keys")(signing_keys)
    app.command("verify")(verify)


def certificate(
    session: Session,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="A completed request, req_…")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="File to write; REQUEST.certificate.json if left out.")
    ] = None,
    edition: Annotated[int | None, typer.Option(help="The newest if left out.")] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="First write a further edition of what is the case now.")
    ] = False,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Also write the log's rows about the request, with proofs, to this file."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Also write the audit that it relies on, whole, to this file."),
    ] = None,
) -> None:
    """Get the certificate of a completed request: what was done, signed, for you to keep.

    Example: expunge certificate req_… && expunge verify req_….certificate.json --key service.pem
    """
    stands = renew and _stands(session, request)
    content = session.client.certificate(request, edition=edition)
    if rows is not None:
        found = session.client.certified_rows(request, content)
        rows.write_bytes(rows_file([each.model_dump(mode="json") for each in found]))
    if report is not None:
        report.write_text(json.dumps(_relied_on(session, request, content).as_told()))
    if session.as_json:
        session.out.print(content.decode(), soft_wrap=True, highlight=False, markup=False)
        return
    path = out or Path(f"{request}.certificate.json")
    path.write_bytes(content)
    print_whole(session.out, _table(verified(content, Given())))
    if stands:
        session.out.print(stands, highlight=False)
    session.hint(f"{path}; check it: expunge verify {path} --key FILE")


def _stands(session: Session, request: str) -> str | None:
    """Ask for a further edition; what to say if the newest, made just now or before, has all there is."""
    before = session.client.certificate(request)
    if session.client.renew_certificate(request) != before:
        return None
    found = told(before)
    return f"Edition {found.edition} of {found.issued_at[:16]} UTC stands: there is nothing newer to certify."


def _relied_on(session: Session, request: str, certificate: bytes) -> Audit:
    """The audit of a certificate, which is usually the service's own."""
    found = told(certificate).audit
    if found is None:
        raise CommandError(
            "the certificate relies on no audit, so there is none for --report; make one with "
            f"`expunge audit {request}`, then have it certified with --renew"
        )
    return session.client.get_audit(found.id)


def signing_keys(
    session: Session,
    *,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the first key, from which all others follow, here; never over another."
        ),
    ] = None,
) -> None:
    """List the keys that the service signs with. Keep one: it proves every later certificate.

    Needs no API key. Compare its id with one that you were told another way.
    """
    found = session.client.signing_keys()
    kept = None if save is None else _keep(save, found)
    session.show_list(found, [("id", lambda key: key.key_id), ("since", lambda key: key.since)])
    if kept:
        session.hint(kept)


def _keep(path: Path, keys: Sequence[KnownKey]) -> str:
    """Write the first key unless something else is there, which may be what somebody trusts; what was done."""
    if not keys:
        raise CommandError("this service has not signed anything yet")
    try:
        first = keys[0].parsed()
    except BadSignature as error:
        raise DoubtError(str(error)) from error
    try:
        with path.open("x") as file:
            file.write(first.pem)
    except FileExistsError:
        held = _held(path)
        if held == first.id:
            return f"{path} holds that key already: {held}"
        raise CommandError(
            f"{path} is left as it is: it holds {f'key {held}' if held else 'no public key'}, and "
            f"the service's first key is {first.id}. If it is another service, save its key in "
            "another file; if not, ask its operator, another way than this, which key is right"
        ) from None
    return f"{path}: key {first.id}"


def _held(path: Path) -> str | None:
    """The id of the key in a file, if there is one."""
    try:
        return PublicKey.from_pem(path.read_bytes()).id
    except UnusableKey:
        return None


def verify(
    file: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="As `certificate` wrote it.")],
    *,
    key: Annotated[
        Path,
        typer.Option(help="Public key of the service (PEM) that you have kept: any up to then."),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint file: is it one of the certificate's?")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Rows of the log, as `certificate --rows` wrote them.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="The audit, as `certificate --report` wrote it: is it the certificate's?"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a certificate link by link. Asks no service and needs no account.

    Ends with status 1 if a link is broken, and says which one and why.
    """
    try:
        given = Given(
            key=PublicKey.from_pem(key.read_bytes()),
            checkpoint_sha256=None if checkpoint is None else sha256_file(checkpoint),
            rows=None if rows is None else rows.read_bytes(),
            audit=None if report is None else _audit(report),
        )
        links = verified(file.read_bytes(), given)
    except (OSError, UnusableKey) as error:
        fail(str(error))
        return
    broken = [link.name for link in links if link.status == "BROKEN"]
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "links": [asdict(link) for link in links]}))
    else:
        print_whole(Console(), _table(links))
    if broken:
        raise typer.Exit(1)


def _audit(path: Path) -> Any:
    """What is no audit is left to the check, which says so."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}


def _table(links: list[Link]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in ("status", "link"):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for link in links:
        name = Text(link.name, "bold")
        table.add_row(Text(link.status, COLOURS[link.status]), name, Text(link.message))
    return table
