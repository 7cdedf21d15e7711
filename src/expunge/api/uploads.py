"""Receiving a large body: streamed to a file, counted and hashed on the way. Never kept in memory or left behind."""

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from fastapi import Depends, Header, Request
from starlette.concurrency import run_in_threadpool

from expunge.api.space import Space
from expunge.formats.digests import parse_content_digest
from expunge.registry.errors import DigestMismatch, DomainError
from expunge.registry.quota import ANY, Room

BUFFER_BYTES = 2**20


class ContentDigestNeeded(DomainError):
    """The Content-Digest header is missing or malformed."""

    slug, title, status = "content-digest-needed", "Content-Digest needed", 400


class ContentTooLarge(DomainError):
    """The body is larger than the service accepts."""

    slug, title, status = "content-too-large", "Content too large", 413


@dataclass(frozen=True, slots=True)
class Upload:
    """A received body whose digest (SHA-256, hex) is the announced one; size in bytes."""

    path: Path
    sha256: str
    size: int


async def _announced_digest(
    content_digest: Annotated[
        str | None,
        # Described by `described_body`: here it may be absent, so that its absence has its own problem.
        Header(include_in_schema=False),
    ] = None,
) -> str:
    if content_digest is None:
        raise ContentDigestNeeded("Send the header Content-Digest: sha-256=:<base64 of 32 bytes>:")
    try:
        return parse_content_digest(content_digest)
    except ValueError as error:
        raise ContentDigestNeeded(str(error)) from error


AnnouncedDigest = Annotated[str, Depends(_announced_digest)]


def described_body(media_type: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that receives a file."""
    return {
        "parameters": [
            {
                "name": "Content-Digest",
                "in": "header",
                "required": True,
                "description": "SHA-256 of the body (RFC 9530): `sha-256=:<base64>:`.",
                "schema": {"type": "string"},
                "example": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {media_type: {"schema": {"type": "string", "format": "binary"}}},
        },
    }


@dataclass(frozen=True, slots=True)
class Expected:
    """A request's body that has not been read yet, and the file that it goes to, which has room for `held` bytes."""

    request: Request
    file: IO[bytes]
    space: Space
    held: int
    limit: int
    room: Room

    async def received(self, sha256: str) -> Upload:
        """The body in its file.

        Raises:
            ContentTooLarge: more than `limit` bytes come.
            QuotaExceeded: more than there is room for.
            NoSpace: more than the disk has room for beside other uploads, and than was held.
            DigestMismatch: the bytes do not have the digest `sha256`.
        """
        hashed = hashlib.sha256()
        size = 0

        def take(data: bytes) -> None:
            if size > self.held:
                self.space.require(len(data))
            hashed.update(data)
            self.file.write(data)

        buffer = bytearray()
        async for chunk in self.request.stream():
            size += len(chunk)
            if size > self.limit:
                raise _too_large(self.limit)
            self.room.require(size)
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                await run_in_threadpool(take, bytes(buffer))
                buffer.clear()
        await run_in_threadpool(take, bytes(buffer))
        self.file.flush()
        if hashed.hexdigest() != sha256:
            raise DigestMismatch(
                f"The {size:,} bytes received have SHA-256 {hashed.hexdigest()}, "
                f"Content-Digest announced {sha256}."
            )
        return Upload(Path(self.file.name), sha256, size)


@contextmanager
def expected(
    request: Request, *, space: Space, limit: int, room: Room = ANY, unannounced: int = 0
) -> Iterator[Expected]:
    """Room for the request's body, in a temporary file of the work folder that is removed at the end in every case.

    For as many bytes as its head announces; for `unannounced`, where it says nothing.

    Raises:
        ContentTooLarge: more than `limit` bytes are announced.
        QuotaExceeded: more than there is room for.
        NoSpace: more than the disk has room for, beside other uploads.
    """
    header = request.headers.get("content-length", "")
    announced = int(header) if header.isdigit() else 0
    if announced > limit:
        raise _too_large(limit)
    room.require(announced)
    held = announced or unannounced
    with (
        tempfile.NamedTemporaryFile(dir=space.folder, prefix="upload-") as file,
        space.held(Path(file.name), held),
    ):
        yield Expected(request, file, space, held, limit, room)


@asynccontextmanager
async def received(
    request: Request, *, space: Space, limit: int, sha256: str, room: Room = ANY
) -> AsyncIterator[Upload]:
    """As `expected`, and then `Expected.received`."""
    with expected(request, space=space, limit=limit, room=room) as body:
        yield await body.received(sha256)


def _too_large(limit: int) -> ContentTooLarge:
    return ContentTooLarge(f"At most {limit:,} bytes are accepted.", limit=limit)
