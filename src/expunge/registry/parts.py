"""Files that are sent in parts, so that one that breaks off goes on: which parts are there, and for how long.

A part is an object under its file's folder, named by its digest. Nothing but the notes of
`orphans` is remembered of it: what is not put together in time, a sweep removes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, update
from sqlalchemy.orm import Session

from expunge.registry import orphans
from expunge.registry.errors import Conflict
from expunge.registry.ids import Prefix, new_id
from expunge.registry.objects import key_of
from expunge.registry.tables import Party, PendingObject

MAX_OPEN = 4
"""Files of one party, begun and neither put together nor, after they expired, swept."""
ROWS = 5_000
"""Notes in one statement."""


class PartMissing(Conflict):
    """The file is to be put together, or a part is sent, but not all of it has been announced and received."""

    slug, title = "part-missing", "A part is missing"


class PartsDiffer(Conflict):
    """The file is being sent in parts other than these."""

    slug, title = "parts-differ", "Announced in other parts"


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

    @property
    def step(self) -> int:
        """Bytes of a part, at most."""
        return int(self.name.split("/")[-2].partition("-")[2])

    def key(self, part: str) -> str:
        """Of a part's object."""
        return key_of(part, self.name)

    def keys(self, file: Parted) -> set[str]:
        """Of the objects of all parts."""
        return {self.key(part) for part in file.parts}


def announce(session: Session, owner: Party, file: Parted, *, seconds: float) -> Folder:
    """Where to send the parts, for so long from now; a file that was begun before stays where it was.

    What is begun takes no other parts: each list would bring objects that nobody counts.

    Raises:
        PartsDiffer: the file is open in other parts.
        Conflict: too many files of this party are open.
    """
    # One after the other for a party: two calls about one file shall find one folder.
    session.get_one(Party, owner.id, with_for_update={"key_share": True})
    now = session.scalars(select(func.now())).one()
    expires_at = now + timedelta(seconds=seconds)
    if (known := _latest(session, _unswept(_of_file(owner, file.sha256)))) is not None:
        if known.step == file.step and _noted(session, known) == known.keys(file):
            _put_off(session, known, expires_at)
            return Folder(known.name, expires_at)
        if known.expires_at > now:
            raise PartsDiffer(
                f"This file is being sent in other parts, of {known.step:,} bytes; announce those, "
                "or wait until they expire.",
                part_bytes=known.step,
                expires_at=known.expires_at,
            )
    if _count_begun(session, owner) >= MAX_OPEN:
        raise Conflict(
            f"{MAX_OPEN} files are being sent in parts already; complete some, or wait until they "
            "have expired and been removed.",
            allowed=MAX_OPEN,
        )
    name = f"{_of_file(owner, file.sha256)}{file.step}/{new_id(Prefix.UPLOAD)}"
    fresh = Folder(name, expires_at)
    _note(session, fresh, file)
    return fresh


def begun(session: Session, owner: Party, sha256: str) -> Folder:
    """Where the parts of an announced file lie.

    Raises:
        PartMissing: it was not announced, or has expired.
    """
    found = _latest(session, _open(_of_file(owner, sha256)))
    if found is None:
        raise PartMissing("Nothing of this file is open; announce its parts first.")
    return found


def require_announced(session: Session, folder: Folder, part: str) -> None:
    """Raise PartMissing unless the part is one of the file's."""
    if session.scalar(_open(folder.key(part)).limit(1)) is None:
        raise PartMissing("No part of this file has this digest; announce its parts first.")


def end(session: Session, folder: Folder) -> list[str]:
    """Give up the folder; the keys of what may be there, which a sweep removes if nobody else does."""
    gone = delete(PendingObject).where(*_inside(f"{folder.name}/"))
    return sorted(session.scalars(gone.returning(PendingObject.key)))


def _of_party(owner: Party) -> str:
    """What the keys of all parts begin with that a party may have sent."""
    return f"uploads/parts/{owner.id}/"


def _of_file(owner: Party, sha256: str) -> str:
    """And those of one file; then come the bytes of a part, the folder, and the part."""
    return f"{_of_party(owner)}{sha256}-"


def _inside(start: str) -> tuple[ColumnElement[bool], ...]:
    return PendingObject.key.startswith(start, autoescape=True), PendingObject.lease_token.is_(None)


def _unswept(start: str) -> Select[str, datetime]:
    """Notes whose objects no sweep has taken yet; `start` is what their keys begin with."""
    return select(PendingObject.key, PendingObject.noted_at).where(*_inside(start))


def _open(start: str) -> Select[str, datetime]:
    """Those that still protect what they name."""
    return _unswept(start).where(PendingObject.noted_at > func.now())


def _latest(session: Session, notes: Select[str, datetime]) -> Folder | None:
    found = session.execute(notes.order_by(PendingObject.noted_at.desc()).limit(1)).first()
    return None if found is None else Folder(found.key.rpartition("/")[0], found.noted_at)


def _count_begun(session: Session, owner: Party) -> int:
    """Files of which something may be in the store: a sweep may have condemned parts and not removed them."""
    folder = func.split_part(PendingObject.key, "/", 5)
    there = (
        PendingObject.key.startswith(_of_party(owner), autoescape=True),
        func.coalesce(PendingObject.lease_token, "") != orphans.GONE,
    )
    return session.scalars(select(func.count(folder.distinct())).where(*there)).one()


def _noted(session: Session, folder: Folder) -> set[str]:
    """The keys of a folder that no sweep has taken, nor takes before the session's transaction ends."""
    notes = _unswept(f"{folder.name}/").order_by(PendingObject.key).with_for_update()
    return set(session.scalars(notes))


def _note(session: Session, folder: Folder, file: Parted) -> None:
    """Protect the parts until the folder expires."""
    keys = sorted(folder.keys(file))
    for first in range(0, len(keys), ROWS):
        # A note from the future: no sweep takes what is sent before it has come.
        rows = [{"key": key, "noted_at": folder.expires_at} for key in keys[first : first + ROWS]]
        session.execute(insert(PendingObject).values(rows))


def _put_off(session: Session, folder: Folder, expires_at: datetime) -> None:
    notes = update(PendingObject).where(*_inside(f"{folder.name}/"))
    session.execute(notes.values(noted_at=expires_at))
