"""The operator's commands about a whole service: its schema, keys, backups, and whether it is consistent.

They reach database and object store themselves, by the service's settings; none speaks HTTP. What
they need is imported when one runs: the commands beside them do without.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

PANEL = "For the operator, where database and object store can be reached"
Backups = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Of all backups; it holds each object once.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (
        migrate,
        operator_key,
        new_signing_key,
        rotate_signing_key,
        backup,
        restore,
        fsck,
    ):
        app.command(rich_help_panel=PANEL)(command)


def migrate() -> None:
    """Bring the database to the newest schema."""
    from expunge.registry import operations  # noqa: PLC0415 - see the top

    operations.carry_out(operations.migrate)


def operator_key(
    *, name: Annotated[str, typer.Option(help="Name of the operator party.")] = "operator"
) -> None:
    """Print a new key of an operator, who is made if there is none of that name."""
    from expunge.registry import operations  # noqa: PLC0415 - see the top

    operations.carry_out(partial(operations.operator_key, name))


def new_signing_key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="One that does not exist yet.")],
) -> None:
    """Write a private key for EXPUNGE_SIGNING_KEY_FILE, mode 0600, and print its public half."""
    from expunge.registry import operations  # noqa: PLC0415 - see the top

    operations.carry_out(partial(operations.new_signing_key, path))


def rotate_signing_key(
    *, new: Annotated[Path, typer.Option(help="File of the new private key.")]
) -> None:
    """Let the key of EXPUNGE_SIGNING_KEY_FILE introduce a new one, which signs from now on."""
    from expunge.registry import operations  # noqa: PLC0415 - see the top

    operations.carry_out(partial(operations.rotate_signing_key, new))


def backup(
    folder: Backups,
    *,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read and mend the objects that it holds.")
    ] = False,
    endings_only: Annotated[
        bool,
        typer.Option(
            "--endings-only",
            help="Only note what has ended for good, so that no restore brings it back: a moment.",
        ),
    ] = False,
) -> None:
    """Back up database and objects while the service runs.

    Ends with status 1 if objects are lost or damaged, 2 if there is no new backup.
    """
    from expunge.registry import operations  # noqa: PLC0415 - see the top

    operation = (
        partial(operations.note_endings, folder)
        if endings_only
        else partial(operations.backup, folder, deep=deep)
    )
    operations.carry_out(operation)


def restore(
    folder: Backups,
    *,
    name: Annotated[str | None, typer.Option(help="Which backup; the newest if left out.")] = None,
    manifest_sha256: Annotated[
        str | None, typer.Option(help="What `backup` printed: refuse any other manifest.")
    ] = None,
    add_to_store: Annotated[
        bool, typer.Option("--add-to-store", help="The store may hold objects, which stay.")
    ] = False,
    without_damaged: Annotated[
        bool,
        typer.Option(
            "--without-damaged", help="Leave out objects that the folder has no more whole."
        ),
    ] = False,
    objects_only: Annotated[
        bool,
        typer.Option(
            "--objects-only",
            help="Leave the database alone: put back lost and damaged objects that its rows name.",
        ),
    ] = False,
) -> None:
    """Restore a backup into an empty database and an empty store.

    Ends with status 1 if something is to be looked at, 2 if it was refused.
    """
    from expunge.registry import operations  # noqa: PLC0415 - see the top

    operation = (
        partial(operations.put_back, folder, name=name)
        if objects_only
        else partial(
            operations.restore,
            folder,
            name=name,
            manifest_sha256=manifest_sha256,
            add_to_store=add_to_store,
            without_damaged=without_damaged,
        )
    )
    operations.carry_out(operation)


def fsck(
    *,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every object to its last byte.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check that database, objects and log are consistent, also while the service works.

    Ends with status 1 if something is broken, 2 if it could not be looked at.
    """
    from expunge.registry import operations  # noqa: PLC0415 - see the top

    operations.carry_out(partial(operations.fsck, deep=deep, as_json=as_json))
