"""`expunge datasets …`: create, upload, seal, list, show, grant, delete."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from expunge.client.commands.session import CommandError, Session, command
from expunge.client.packing import shards_of
from expunge.client.resources import Dataset

app = typer.Typer(no_args_is_help=True, help="Your data sets: upload, seal, grant.")

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="Id, dst_…")]


@command(app, "create")
def create(session: Session, name: Annotated[str, typer.Argument(help="Any name.")]) -> None:
    """Create an open, empty data set.

    Example: expunge datasets create "holiday photos"
    """
    dataset = session.client.create_dataset(name)
    session.show(dataset, hint=f"Next: expunge datasets upload {dataset.id} FOLDER")


@command(app, "upload")
def upload(
    session: Session,
    dataset: DatasetId,
    source: Annotated[
        Path, typer.Argument(help="A folder of images (sub-folders are classes) or .tar shards.")
    ],
    seal: Annotated[bool, typer.Option("--seal", help="Seal the data set afterwards.")] = False,
    direct: Annotated[
        bool | None,
        typer.Option(
            "--direct/--through-service",
            help="Send shards to the object store, or to the service. Default: large ones to the "
            "store, where it can be reached.",
        ),
    ] = None,
) -> None:
    """Upload images; a folder of images is packed into WebDataset shards first.

    Example: expunge datasets upload dst_… ./photos --seal
    """
    with tempfile.TemporaryDirectory(prefix="expunge-") as scratch:
        for path in shards_of(source, Path(scratch)):
            shard = session.client.upload_shard(dataset, path, direct=direct)
            if not session.as_json:
                session.out.print(
                    f"{shard.name}: {shard.samples:,} samples, {shard.bytes:,} bytes, "
                    f"{shard.digest}",
                    highlight=False,
                )
    if seal:
        _seal(session, dataset)
    else:
        session.show(session.client.dataset(dataset), hint=f"Next: expunge datasets seal {dataset}")


@command(app, "seal")
def seal(session: Session, dataset: DatasetId) -> None:
    """Validate every sample and fix the data set's digest; nothing can be added afterwards."""
    _seal(session, dataset)


@command(app, "list")
def list_(session: Session) -> None:
    """List your data sets and those granted to you."""
    session.show_list(
        session.client.datasets(),
        [
            ("id", lambda item: item.id),
            ("name", lambda item: item.name),
            ("state", lambda item: item.state),
            ("samples", lambda item: f"{item.samples:,}"),
            ("MB", lambda item: f"{item.bytes / 1e6:.1f}"),
        ],
    )


@command(app, "show")
def show(session: Session, dataset: DatasetId) -> None:
    """Show one data set."""
    session.show(session.client.dataset(dataset))


@command(app, "grant")
def grant(
    session: Session,
    dataset: DatasetId,
    party: Annotated[str, typer.Argument(metavar="PARTY", help="The model owner, pty_…")],
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the grant back.")] = False,
) -> None:
    """Let a model owner train on a data set; they never see its samples."""
    if revoke:
        session.client.revoke_grant(dataset, party)
    else:
        session.client.grant(dataset, party)
    session.show(session.client.dataset(dataset))


@command(app, "delete")
def delete(
    session: Session,
    dataset: DatasetId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a data set's samples for good, and what audits of it hold; nothing can be audited afterwards.

    Example: expunge datasets delete dst_… --yes
    """
    if not yes:
        typer.confirm("Its samples are gone for good, and audits of them end. Delete?", abort=True)
    deleted = session.client.delete_dataset(dataset)
    waits = "The store has not confirmed it yet; the service tries again by itself."
    session.show(deleted, hint=waits if deleted.state == "deleting" else None)


def _seal(session: Session, dataset_id: str) -> None:
    dataset: Dataset = session.client.seal(dataset_id)
    session.show(dataset)
    if dataset.state != "sealed":
        fault = dataset.problem
        where = f"shard {fault.shard}: " if fault and fault.shard else ""
        reason = fault.detail if fault else "no reason given"
        corrected = "Upload the corrected shard under the same name and seal again"
        then = corrected if dataset.state == "invalid" else "Try again later"
        raise CommandError(f"the data set is {dataset.state}: {where}{reason}. {then}")
