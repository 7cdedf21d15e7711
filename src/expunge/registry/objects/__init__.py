"""The object store: immutable objects under the SHA-256 of their content, in a directory or behind S3.

An object is put first and recorded after: what a crash leaves unnamed, `registry.orphans` removes.
"""

from pathlib import Path
from urllib.parse import urlsplit

from expunge.registry.objects.directory import DirectoryStore
from expunge.registry.objects.multipart import PART_BYTES
from expunge.registry.objects.s3 import S3Store
from expunge.registry.objects.store import (
    DirectPut,
    ObjectDamaged,
    ObjectMissing,
    ObjectStore,
    StoreUnavailable,
    fetch,
    key_of,
    put_bytes,
    read_bytes,
    verified,
)
from expunge.registry.settings import Settings

__all__ = [
    "PART_BYTES",
    "DirectPut",
    "DirectoryStore",
    "ObjectDamaged",
    "ObjectMissing",
    "ObjectStore",
    "S3Store",
    "StoreUnavailable",
    "fetch",
    "key_of",
    "open_store",
    "put_bytes",
    "read_bytes",
    "verified",
]


def open_store(settings: Settings) -> ObjectStore:
    """The store that the settings name.

    Raises:
        ValueError: the address is neither file:///directory nor s3://bucket.
    """
    address = urlsplit(settings.object_store)
    if address.scheme == "file" and address.path.startswith("/"):
        return DirectoryStore(Path(address.path))
    if address.scheme == "s3" and address.netloc and settings.s3_endpoint:
        return S3Store(settings, address.netloc)
    raise ValueError(
        "EXPUNGE_OBJECT_STORE must be file:///absolute/directory, or s3://bucket with "
        f"EXPUNGE_S3_ENDPOINT set; got {settings.object_store!r}"
    )
