"""Files that are sent in parts, so that one that breaks off goes on: which parts are there, and for how long.

A part is an object under its file's folder, named by its digest. Nothing but the notes of
`orphans` is remembered of it: what is not put together in time, a sweep removes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.registry.errors import Conflict
from expunge.registry.ids import Prefix, new_id
from expunge.registry.objects import key_of
from expunge.registry.tables import Party, PendingObject

MAX_OPEN = 4
"""Files of one party, begun and neither put together nor given up."""
ROWS = 5_000
"""Notes in one statement."""


class PartMissing(Conflict):
    """The file is to be put together, or a part is sent, but not all of it has been announced and received."""

    slug, title = "part-missing", "A part is missing"


@dataclass(frozen=True, slots=True)
class Parted:
    """A file of `size` bytes, its SHA-256 and those of its parts in order; all but the last are of `step` bytes."""

    size: int
    sha256: str
    step: int
    parts: Sequence[str]

    def sizes(self) -> dict[str, int]:
        """Bytes of each part, by its digest."""
        starts = range(0, self.size, self.step)
        each = zip(self.parts, starts, strict=True)
        return {sha256: min(self.step, self.size - start) for sha256, start in each}


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the parts of a file lie until `expires_at`."""

    name: str
    expires_at: datetime

    def key(self, part: str) -> str:
        """Of a part's object."""
        return key_of(part, self.name)


def announce(session: Session, owner: Party, file: Parted, *, seconds: float) -> Folder:
    """Where to send the parts, for so long from now; a file that was begun before stays where it was.

    Raises:
        Conflict: too many files of this party are open.
    """
    # One after the other for a party: two calls about one file shall find one folder.
    session.get_one(Party, owner.id, with_for_update={"key_share": True})
    expires_at = session.scalars(select(func.now())).one() + timedelta(seconds=seconds)
    folder = _open_folder(session, owner, file.sha256)
    if folder is not None and _noted(session, Folder(folder, expires_at), file.parts):
        return Folder(folder, expires_at)
    if _count_open(session, owner) >= MAX_OPEN:
        raise Conflict(
            f"{MAX_OPEN} files are being sent in parts already; complete some, or wait until they "
            "expire.",
            allowed=MAX_OPEN,
        )
    fresh = Folder(f"{_folders_of(owner)}/{file.sha256}/{new_id(Prefix.UPLOAD)}", expires_at)
    _noted(session, fresh, file.parts)
    return fresh


def begun(session: Session, owner: Party, sha256: str) -> Folder:
    """Where the parts of an announced file lie.

    Raises:
        PartMissing: it was not announced, or has expired.
    """
    open_notes = _open_notes(f"{_folders_of(owner)}/{sha256}/")
    found = session.execute(open_notes.order_by(PendingObject.noted_at.desc()).limit(1)).first()
    if found is None:
        raise PartMissing("Nothing of this file is open; announce its parts first.")
    return Folder(found.key.rpartition("/")[0], found.noted_at)


def require_announced(session: Session, folder: Folder, part: str) -> None:
    """Raise PartMissing unless the part is one of the file's."""
    if session.scalar(_open_notes(folder.key(part)).limit(1)) is None:
        raise PartMissing("No part of this file has this digest; announce its parts first.")


def end(session: Session, folder: Folder) -> list[str]:
    """Give up the folder; the keys of what may be there, which a sweep removes if nobody else does."""
    inside = PendingObject.key.startswith(f"{folder.name}/", autoescape=True)
    gone = delete(PendingObject).where(inside, PendingObject.lease_token.is_(None))
    return sorted(session.scalars(gone.returning(PendingObject.key)))


def _folders_of(owner: Party) -> str:
    return f"uploads/parts/{owner.id}"


def _open_notes(start: str) -> Select[str, datetime]:
    """Notes that still protect what they name; `start` is what their keys begin with."""
    return select(PendingObject.key, PendingObject.noted_at).where(
        PendingObject.key.startswith(start, autoescape=True),
        PendingObject.lease_token.is_(None),
        PendingObject.noted_at > func.now(),
    )


def _open_folder(session: Session, owner: Party, sha256: str) -> str | None:
    try:
        return begun(session, owner, sha256).name
    except PartMissing:
        return None


def _count_open(session: Session, owner: Party) -> int:
    notes = _open_notes(f"{_folders_of(owner)}/").subquery()
    folder = func.split_part(notes.c.key, "/", 5)
    return session.scalars(select(func.count(folder.distinct()))).one()


def _noted(session: Session, folder: Folder, parts: Sequence[str]) -> bool:
    """Protect the parts until the folder expires; False if a sweep has condemned one before."""
    keys = sorted({folder.key(each) for each in parts})
    noted = 0
    for first in range(0, len(keys), ROWS):
        # A note from the future: no sweep takes what is sent before it has come.
        rows = [{"key": key, "noted_at": folder.expires_at} for key in keys[first : first + ROWS]]
        new = insert(PendingObject).values(rows)
        statement = new.on_conflict_do_update(
            index_elements=[PendingObject.key],
            set_={"noted_at": new.excluded.noted_at},
            where=PendingObject.lease_token.is_(None),
        )
        noted += len(session.scalars(statement.returning(PendingObject.key)).all())
    return noted == len(keys)
