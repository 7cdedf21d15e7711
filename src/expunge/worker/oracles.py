"""Retrain's checkpoints on this machine, kept between comparisons since they cost as much as the model did.

They hold what a model's head retains, so they go when that head does. Never read here: the
training process knows what each one is of.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from expunge.registry.jobs import LIVE_STATES
from expunge.registry.tables import Job, JobKind, Model
from expunge.worker.context import Context

KEPT = 20
"""Checkpoints at most, the newest of all models."""


def folder_of(context: Context, checkpoint_id: str) -> Path:
    """Where those made for comparisons on this checkpoint are; made if it is missing."""
    folder = _root(context) / checkpoint_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drop_outdated(context: Context) -> None:
    """Remove those of checkpoints that are no model's head any more: the head may have forgotten since.

    What a comparison is still running on stays until that one ends.
    """
    with context.sessions() as session:
        kept = set(session.scalars(select(Model.head_checkpoint_id)))
        running = select(Job.base_checkpoint_id).where(
            Job.kind == JobKind.COMPARE, Job.state.in_(LIVE_STATES)
        )
        kept |= set(session.scalars(running))
    for folder in _folders(context):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def keep_newest(context: Context, kept: int = KEPT) -> None:
    """Remove all but the newest files; another worker of this machine may be doing the same."""
    newest_first = sorted(_files(context), key=lambda each: each[0], reverse=True)
    for _, path in newest_first[kept:]:
        path.unlink(missing_ok=True)


def _root(context: Context) -> Path:
    return context.settings.work_dir / "oracles"


def _folders(context: Context) -> list[Path]:
    root = _root(context)
    return [path for path in root.iterdir() if path.is_dir()] if root.exists() else []


def _files(context: Context) -> Iterator[tuple[float, Path]]:
    """When each was last used, in seconds, and where it is; without those that vanish meanwhile."""
    for folder in _folders(context):
        with suppress(FileNotFoundError):
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    yield path.stat().st_mtime, path
