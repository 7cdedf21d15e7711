"""A strict reader of tar archives: plain members with plain names, none larger than allowed.

Never extracts to disk, never follows a link, and keeps no more than one header in memory.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal

BLOCK_BYTES = 512
MAX_NAME_CHARS = 200
MAX_EXTENSION_BYTES = 16 * 2**10
"""Of a long name or a set of extra attributes in front of a member; usual ones have less than a hundred."""
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_DAMAGES = (tarfile.TarError, ValueError, OverflowError)
"""What tarfile raises; the last two of numbers and text that it did not expect to be none."""
_SPARSE = b"GNU.sparse"
_NESTED = "its tar extensions are nested too deeply"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-./]*")

ShardErrorCode = Literal[
    "not-a-tar",
    "truncated",
    "unsafe-name",
    "not-a-file",
    "unknown-suffix",
    "duplicate-key",
    "missing-image",
    "too-large",
    "image-undecodable",
    "image-too-large",
    "label-invalid",
    "caption-invalid",
    "empty",
]


class ShardError(ValueError):
    """The shard breaks a rule of the format; `code` is stable, the message says where and what is allowed."""

    def __init__(self, code: ShardErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ShardErrorCode = code


class _BoundedInfo(tarfile.TarInfo):
    """Looks at a header before tarfile does: that reads extensions of any size into memory, one inside the other."""

    def _proc_member(self, archive: Any) -> tarfile.TarInfo:
        """The hook that tarfile calls for every header, its file positioned behind it."""
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise ShardError("not-a-file", f"member {self.name!r} is not a plain file")
        if self.type in _EXTENSIONS:
            if not 0 <= self.size <= MAX_EXTENSION_BYTES:
                raise ShardError(
                    "too-large",
                    f"the tar extension {self.name[:80]!r} has {self.size:,} bytes; at most "
                    f"{MAX_EXTENSION_BYTES:,}",
                )
            start = archive.fileobj.tell()
            if _SPARSE in archive.fileobj.read(self.size):
                raise ShardError("not-a-file", "sparse members are not accepted")
            archive.fileobj.seek(start)
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed
        return member


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a tar: its name without the suffix, and where its bytes are."""

    key: str
    suffix: str
    offset: int
    size: int


def entries(file: IO[bytes], size: int, limits: Mapping[str, int]) -> Iterator[Entry]:
    """The members of a tar of `size` bytes, as far as the limits (most bytes by suffix) allow them.

    Raises:
        ShardError: the first rule of tars, names or sizes that the file breaks.
    """
    end = 0
    try:
        archive = tarfile.open(fileobj=file, mode="r:", tarinfo=_BoundedInfo)  # noqa: SIM115 - closed by the with below
    except ShardError:
        raise
    except _DAMAGES as error:
        raise ShardError("not-a-tar", f"not an uncompressed tar archive ({error})") from error
    except RecursionError as error:
        raise ShardError("not-a-tar", _NESTED) from error
    with archive:
        try:
            for member in archive:
                end = _end_within(member, size)
                yield _checked_entry(member, limits)
                # tarfile keeps every header it has read; a long shard would keep them all in memory.
                archive.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
        except ShardError:
            raise
        except _DAMAGES as error:
            raise ShardError("truncated", f"the archive breaks off: {error}") from error
        except RecursionError as error:
            raise ShardError("not-a-tar", _NESTED) from error
    _check_end(file, end, size)


def _check_end(file: IO[bytes], end: int, size: int) -> None:
    """tarfile stops silently at a damaged or missing header: what follows the last member must be zero blocks."""
    if size - end < 2 * BLOCK_BYTES:
        raise ShardError("truncated", "the archive's end marker is missing")
    file.seek(end)
    while chunk := file.read(2**20):
        if chunk.strip(b"\0"):
            raise ShardError("truncated", "the archive is damaged behind its last readable member")


def _end_within(member: tarfile.TarInfo, size: int) -> int:
    end = member.offset_data - (-member.size // BLOCK_BYTES) * BLOCK_BYTES
    if end > size:
        raise ShardError("truncated", f"the archive ends inside {member.name!r}")
    return end


def _checked_entry(member: tarfile.TarInfo, limits: Mapping[str, int]) -> Entry:
    name = member.name
    if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
        raise ShardError(
            "unsafe-name",
            f"member name {name[:80]!r} is not accepted: relative names of letters, digits, "
            f"'_', '-', '.' and '/' only, at most {MAX_NAME_CHARS} characters",
        )
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ShardError("unsafe-name", f"member name {name!r} leaves the archive or is not plain")
    if not member.isreg() or member.issparse():
        raise ShardError("not-a-file", f"member {name!r} is not a plain file")
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if suffix not in limits:
        raise ShardError(
            "unknown-suffix",
            f"member {name!r} has suffix {'.' + suffix!r}; allowed are "
            f"{', '.join('.' + allowed for allowed in limits)}",
        )
    limit = limits[suffix]
    if not 0 <= member.size <= limit:
        raise ShardError(
            "too-large", f"member {name!r} has {member.size:,} bytes; 0 to {limit:,} are accepted"
        )
    key = f"{folder}/{stem}" if folder else stem
    return Entry(key, suffix, member.offset_data, member.size)
