"""Files too large for one try: what came is kept, the rest is asked for. Never hands out other bytes than named."""

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import IO, Protocol

import httpx

from expunge.client.problems import DoubtError, ProblemError
from expunge.client.transport import RETRIED_STATUSES, Transport

READ_BYTES = 2**20


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def download(transport: Transport, path: str, target: Path, sha256: str) -> None:
    """Write the object at `path` to `target` once it is complete and has this digest (hexadecimal).

    Until then it lies beside, in a file that ends in `.part` and stays after an error: the same call
    goes on from there.

    Raises:
        ProblemError: the service refused.
        UnreachableError: no answer came, or several in a row broke off without getting further.
        DoubtError: other bytes came; none are kept.
    """
    partial = target.with_name(f"{target.name}.{sha256[:16]}.part")
    try:
        with partial.open("a+b") as file:
            _fill(transport, path, sha256, file)
        partial.replace(target)
    finally:
        if partial.exists() and partial.stat().st_size == 0:
            partial.unlink()


def _fill(transport: Transport, path: str, sha256: str, file: IO[bytes]) -> None:
    hashed, failures = _hash_of(file), 0
    while hashed.hexdigest() != sha256:
        start, cause = file.tell(), "it is not ready"
        try:
            complete = _go_on(transport, path, sha256, file, hashed)
        except httpx.TransportError as error:
            complete, cause = False, str(error) or type(error).__name__
        if complete and hashed.hexdigest() != sha256:
            _empty(file)
            raise DoubtError(
                f"What came from {path} has SHA-256 {hashed.hexdigest()}, not {sha256}; "
                "nothing of it is kept."
            )
        if file.tell() < start:
            hashed = _hash_of(file)
        elif not complete:
            failures = 1 if file.tell() > start else failures + 1
            transport.try_again(failures, cause)


def _hash_of(file: IO[bytes]) -> _Digest:
    """Of all that is in the file, which is left at its end."""
    file.seek(0)
    hashed = hashlib.sha256()
    while data := file.read(READ_BYTES):
        hashed.update(data)
    return hashed


def _go_on(transport: Transport, path: str, sha256: str, file: IO[bytes], hashed: _Digest) -> bool:
    """Append what comes; whether that was all. A file that does not fit what there is becomes empty."""
    start = file.tell()
    headers = {"Range": f"bytes={start}-", "If-Range": f'"{sha256}"'} if start else {}
    try:
        with transport.answer(path, headers) as response:
            if response.status_code in RETRIED_STATUSES:
                return False
            if start and response.status_code != HTTPStatus.PARTIAL_CONTENT:
                _empty(file)
                return False
            for data in response.iter_bytes():
                file.write(data)
                hashed.update(data)
    except ProblemError as error:
        if error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        _empty(file)
        return False
    return True


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()
