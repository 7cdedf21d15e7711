"""Checks the log on the reader's own machine, and remembers what was seen so that later it cannot be rewritten.

Trusts the service in nothing but the first key and the first tree head that it ever showed.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from expunge.client.log import LogProof, LogRow, TreeHead
from expunge.evidence.canonical import NotCanonical
from expunge.evidence.heads import Head, opened
from expunge.evidence.merkle import BadProof, check_consistency, check_inclusion
from expunge.evidence.signing import BadSignature, PublicKey
from expunge.evidence.succession import KnownKey, follow

STATE_FILE = Path("expunge") / "log-heads.json"


class BrokenRecord(Exception):
    """A link of the record does not hold; the message says which."""


class Seen(BaseModel):
    """The last tree head that was checked, and the key that was trusted first."""

    size: int
    root_hash: str
    at: str
    key: str | None = None
    """PEM; none while the service signed nothing."""


@dataclass(frozen=True)
class Verified:
    """What a check has shown."""

    head: TreeHead
    proven: int
    """Own rows that are part of the head."""
    waiting: int
    """Own rows that are newer than the head."""
    since: Seen | None
    """The earlier head that this one continues; none the first time."""
    seen: Seen
    """To be remembered for the next time."""


class Source(Protocol):
    """What the check asks the service for."""

    def log_head(self) -> TreeHead: ...

    def log_rows(self, subject: str | None = None, *, size: int | None = None) -> Any: ...

    def log_consistency(self, first: int, second: int) -> list[bytes]: ...

    def signing_keys(self) -> list[KnownKey]: ...


def verify(service: Source, since: Seen | None, key: PublicKey | None = None) -> Verified:
    """Check the newest head's signature, that it continues the last one seen, and all own rows under it.

    Args:
        since: what the last check has shown, if there was one.
        key: a key of the service that is trusted; else the one trusted first, or now the first one.

    Raises:
        BrokenRecord: a link does not hold.
    """
    head = service.log_head()
    pinned = _check_signature(head, service.signing_keys(), since, key)
    if since is not None:
        _check_growth(service, head, since)
    proven = waiting = 0
    stated = _stated(head)
    for row in service.log_rows(size=head.size):
        if row.path is None:
            waiting += 1
        else:
            check_row(row, stated)
            proven += 1
    seen = Seen(
        size=head.size,
        root_hash=head.root_hash,
        at=head.at,
        key=None if pinned is None else pinned.pem,
    )
    return Verified(head, proven, waiting, since, seen)


def check_proof(proof: LogProof, known: Sequence[KnownKey], key: PublicKey | None = None) -> None:
    """Check the proof of one row, and its head's signature by a trusted key or one that follows it.

    Raises:
        BrokenRecord: a link does not hold.
    """
    _check_signature(proof.head, known, None, key)
    check_row(proof.row, _stated(proof.head))


def check_row(row: LogRow, head: Head) -> None:
    """Check that a row's content is what was sealed, and that the seal is part of the head.

    Raises:
        BrokenRecord: a link does not hold.
    """
    if row.position is None or row.path is None:
        raise BrokenRecord(f"row {row.seq}: the service gives no proof")
    try:
        leaf = row.evidence().leaf()
    except NotCanonical as error:
        raise BrokenRecord(f"row {row.seq}: its content cannot be hashed: {error}") from error
    if leaf.hex() != row.leaf_hash:
        raise BrokenRecord(f"row {row.seq}: its content is not what was sealed at {row.position}")
    try:
        path = [bytes.fromhex(each) for each in row.path]
        check_inclusion(leaf, row.position, head.size, path, head.root_hash)
    except ValueError as error:
        raise BrokenRecord(f"row {row.seq}: its proof does not hold: {error}") from error


def _check_signature(
    head: TreeHead, known: Sequence[KnownKey], since: Seen | None, key: PublicKey | None
) -> PublicKey | None:
    """The key that is trusted from now on; none while nothing was ever signed."""
    if key is None and since is not None and since.key is not None:
        key = PublicKey.from_pem(since.key)
    if head.envelope is None:
        if key is not None:
            raise BrokenRecord(
                f"tree head of {head.size} rows: it is not signed, as it should be by key {key.id} "
                "or one that follows it"
            )
        return None
    try:
        if key is None and known:
            key = known[0].parsed()
        trusted = [] if key is None else follow(key, known)
    except BadSignature as error:
        raise BrokenRecord(f"signing keys: {error}") from error
    _check_envelope(head, trusted)
    return key


def _check_envelope(head: TreeHead, trusted: Sequence[PublicKey]) -> None:
    try:
        signed = opened(head.envelope, trusted)
    except BadSignature as error:
        raise BrokenRecord(f"tree head of {head.size} rows: {error}") from error
    if signed != _stated(head):
        raise BrokenRecord(f"tree head of {head.size} rows: another one was signed")


def _check_growth(service: Source, head: TreeHead, since: Seen) -> None:
    old, new = bytes.fromhex(since.root_hash), _stated(head).root_hash
    try:
        path = service.log_consistency(since.size, head.size) if since.size < head.size else []
        check_consistency(since.size, head.size, old, new, path)
    except BadProof as error:
        raise BrokenRecord(f"since the head of {since.at}: {error}") from error


def _stated(head: TreeHead) -> Head:
    try:
        return head.stated()
    except ValueError as error:
        raise BrokenRecord(f"tree head of {head.size} rows: its hashes are none") from error


class Memory:
    """A small file of the last head seen of each service."""

    def __init__(self, path: Path | None = None) -> None:
        """The user's own file of this kind unless another is named."""
        self._path = path or _state_folder() / STATE_FILE

    def recall(self, url: str) -> Seen | None:
        """What was last seen of the service at this address.

        Raises:
            BrokenRecord: the file cannot be understood, so nothing can be compared with it.
        """
        seen = self._read().get(url)
        try:
            found = None if seen is None else Seen.model_validate(seen)
            if found is not None:
                bytes.fromhex(found.root_hash)
                _ = found.key and PublicKey.from_pem(found.key)
        except ValueError as error:
            raise self._damaged() from error
        return found

    def remember(self, url: str, seen: Seen) -> None:
        """Keep it for the next time; the file is replaced as a whole."""
        known = self._read() | {url: seen.model_dump()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
            json.dump(known, file, indent=1)
        Path(file.name).replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(known, dict):
            raise self._damaged()
        return known

    def _damaged(self) -> BrokenRecord:
        return BrokenRecord(
            f"{self._path} is damaged: what was seen of the log before is lost; move it away to "
            "start anew"
        )


def _state_folder() -> Path:
    """As the XDG base directory specification has it."""
    named = os.environ.get("XDG_STATE_HOME", "")
    return Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
