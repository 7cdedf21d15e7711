"""What Expunge needs of an object store, and what it does with any of them. Never says where objects live."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from expunge.formats.digests import sha256_file


class ObjectMissing(Exception):
    """The store has no such object."""


class ObjectDamaged(Exception):
    """The stored bytes do not have the digest that their key names."""


class StoreUnavailable(Exception):
    """The store cannot be used now: the same call may succeed later."""


@dataclass(frozen=True, slots=True)
class DirectPut:
    """How somebody without keys stores one object: a PUT to the URL with all of these headers."""

    url: str
    headers: dict[str, str]


class ObjectStore(Protocol):
    """Every call may raise StoreUnavailable; both implementations pass the same tests."""

    def put(self, path: Path, sha256: str, *, under: str | None = None) -> str:
        """Store the file's bytes and return their key, which ends in their digest.

        The key is that of the content, or `<under>/<sha256>`. Storing the same bytes again changes
        nothing. When it returns, the object outlasts a power cut.
        """
        ...

    def direct_put(self, key: str, size: int, sha256: str, seconds: float) -> DirectPut | None:
        """How others may store these bytes under the key for so long; None where they cannot.

        Not every server refuses other bytes: look at what came before it is used.
        """
        ...

    def stream(self, key: str, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """The object's bytes in chunks, from byte `start` on, `size` of them or all that are left.

        Digest unchecked (see `verified`); never fewer than there are without an error.

        Raises:
            ObjectMissing: at the first chunk.
        """
        ...

    def part(self, key: str, start: int, size: int) -> bytes:
        """`size` bytes of the object from byte `start` on, fewer where it ends before; digest unchecked.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    def size(self, key: str) -> int:
        """The object's size in bytes.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    def keys(self, under: str = "") -> Iterator[str]:
        """The keys of all objects, or of those in one folder, listed while they are read.

        What comes or goes meanwhile may be missed.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""
        ...

    def clean(self, older_than_seconds: float) -> int:
        """Remove what broken puts left that nobody wrote to for so long; how many files that were."""
        ...

    def check(self) -> None:
        """Raise StoreUnavailable if the store cannot be used now."""
        ...


def key_of(sha256: str, under: str | None) -> str:
    """Where an object with this digest (hexadecimal) belongs."""
    return f"sha256/{sha256[:2]}/{sha256}" if under is None else f"{under}/{sha256}"


def put_bytes(store: ObjectStore, data: bytes, work_dir: Path) -> str:
    """Store a small object that is at hand as bytes."""
    with tempfile.NamedTemporaryFile(dir=work_dir) as file:
        file.write(data)
        file.flush()
        return store.put(Path(file.name), sha256_file(Path(file.name)))


def verified(store: ObjectStore, key: str) -> Iterator[bytes]:
    """The object's bytes in chunks; the last one comes once the digest of all is that of the key.

    Raises:
        ObjectMissing: at the first chunk.
        ObjectDamaged: in place of the last chunk.
    """
    hashed = hashlib.sha256()
    held = b""
    for chunk in store.stream(key):
        if held:
            yield held
        hashed.update(chunk)
        held = chunk
    _require(key, hashed.hexdigest())
    if held:
        yield held


def _require(key: str, sha256: str) -> None:
    if not key.endswith(sha256):
        raise ObjectDamaged(f"object {key} does not have the digest that its key names")


def read_bytes(store: ObjectStore, key: str) -> bytes:
    """A small object as bytes.

    Raises:
        ObjectMissing: there is none.
        ObjectDamaged: the bytes are not those that were stored.
    """
    return b"".join(verified(store, key))


def fetch(
    store: ObjectStore, key: str, target: Path, *, check: Callable[[], None] | None = None
) -> None:
    """Copy an object to a file and check its digest; after any error there is no file.

    `check` is called before each chunk is written; what it raises abandons the copy.

    Raises:
        ObjectMissing: there is none.
        ObjectDamaged: the bytes are not those that were stored.
        StoreUnavailable: try again later.
    """
    try:
        with target.open("wb") as file:
            for chunk in verified(store, key):
                if check is not None:
                    check()
                file.write(chunk)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
