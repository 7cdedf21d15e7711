"""Objects as responses: streamed, cacheable for ever since they never change."""

from collections.abc import Mapping
from itertools import chain

from fastapi.responses import StreamingResponse

from expunge.registry.objects import ObjectStore, verified

CACHE_CONTROL = "private, max-age=31536000, immutable"


def stream_object(
    store: ObjectStore, key: str, media_type: str, *, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """The object as a response; it breaks off before its end where the bytes are not those of its digest.

    Raises:
        ObjectMissing: before the answer has begun, so that it can still be an error.
        ObjectDamaged: likewise, of an object of one chunk.
    """
    chunks = verified(store, key)
    first = next(chunks, b"")
    digest = key.rpartition("/")[2]
    return StreamingResponse(
        chain([first], chunks),
        media_type=media_type,
        headers={"Cache-Control": CACHE_CONTROL, "ETag": f'"{digest}"', **(headers or {})},
    )
