"""Objects as responses: streamed, cacheable for ever since they never change, whole or from where one broke off."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from fastapi import Depends, Header
from fastapi.responses import Response, StreamingResponse

from expunge.api.problems import MEDIA_TYPE, documented
from expunge.formats.digests import content_digest
from expunge.registry.errors import DomainError
from expunge.registry.objects import ObjectStore, verified

CACHE_CONTROL = "private, max-age=31536000, immutable"
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


class RangeNotSatisfiable(DomainError):
    """The part that is asked for begins after the end."""

    slug, title, status = "range-not-satisfiable", "No such range", 416


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a caller wants of an object: not the copy it has, or only the part that it lacks."""

    none_match: str | None
    range: str | None
    if_range: str | None


async def _wanted(
    if_none_match: Annotated[
        str | None, Header(description="`ETag` of a copy at hand: `304` if it is this one.")
    ] = None,
    range_: Annotated[
        str | None,
        Header(alias="Range", description="`bytes=FIRST-[LAST]`: only this part, as `206`."),
    ] = None,
    if_range: Annotated[
        str | None, Header(description="`ETag` of what the part belongs to; if another, all comes.")
    ] = None,
) -> _Wanted:
    return _Wanted(if_none_match, range_, if_range)


Wanted = Annotated[_Wanted, Depends(_wanted)]


def documented_download(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with `stream_object`."""
    content = {each: {"schema": {"type": "string", "format": "binary"}} for each in media_types}
    return {
        200: {"description": description, "content": content},
        206: {"description": "The part that `Range` asked for.", "content": content},
        304: {"description": "The copy at hand is this one."},
        416: {
            "description": "The part would begin after the end.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
        **documented(403, 404),
    }


def stream_object(
    store: ObjectStore,
    key: str,
    media_type: str,
    wanted: _Wanted,
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The object as a response, as far as it is wanted.

    A whole one breaks off before its end where the bytes are not those of its digest; of a part only
    whoever has the rest can tell.

    Raises:
        ObjectMissing: before the answer has begun, so that it can still be an error.
        ObjectDamaged: likewise, of an object of one chunk.
        RangeNotSatisfiable: it ends before the part begins.
    """
    digest = key.rpartition("/")[2]
    etag = f'"{digest}"'
    fixed = {"Cache-Control": CACHE_CONTROL, "ETag": etag}
    if wanted.none_match is not None and _names(wanted.none_match, etag):
        return Response(status_code=304, headers=fixed)
    size = store.size(key)
    fixed |= {"Accept-Ranges": "bytes", "Repr-Digest": content_digest(digest), **(headers or {})}
    part = _part(wanted.range, size) if wanted.if_range in (None, etag) else None
    if part is None:
        fixed |= {"Content-Digest": content_digest(digest), "Content-Length": str(size)}
        return StreamingResponse(_begun(verified(store, key)), 200, fixed, media_type)
    start, end = part
    fixed |= {
        "Content-Range": f"bytes {start}-{end - 1}/{size}",
        "Content-Length": f"{end - start}",
    }
    return StreamingResponse(_begun(store.stream(key, start, end - start)), 206, fixed, media_type)


def _begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, the first of them fetched already."""
    return chain([next(chunks, b"")], chunks)


def _names(if_none_match: str, etag: str) -> bool:
    listed = (each.strip().removeprefix("W/") for each in if_none_match.split(","))
    return any(each in ("*", etag) for each in listed)


def _part(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for all of it, also where one part is not what is asked for."""
    found = _RANGE.fullmatch(header or "")
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiable(f"There are {size:,} bytes.", size=size)
    return start, end
