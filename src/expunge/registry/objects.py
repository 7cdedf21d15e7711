"""The object store: immutable objects under the SHA-256 of their content, in a directory or behind S3.

An object is put first and recorded after: a crash leaves at worst an object that nothing names.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from expunge.formats.digests import CHUNK_BYTES, sha256_file
from expunge.registry.settings import Settings

S3_TIMEOUT_SECONDS = 30
S3_ATTEMPTS = 4
PART_BYTES = 16 * 2**20


class ObjectMissing(Exception):
    """The store has no such object."""


class ObjectDamaged(Exception):
    """The stored bytes do not have the digest that their key names."""


class ObjectStore(Protocol):
    """What Expunge needs of a store; both implementations pass the same tests."""

    def put(self, path: Path, sha256: str) -> str:
        """Store the file's bytes and return their key; storing them again changes nothing."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The object's bytes in chunks.

        Raises:
            ObjectMissing: at the first chunk.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""
        ...

    def check(self) -> None:
        """Raise if the store cannot be used now."""
        ...


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


def put_bytes(store: ObjectStore, data: bytes, work_dir: Path) -> str:
    """Store a small object that is at hand as bytes."""
    with tempfile.NamedTemporaryFile(dir=work_dir) as file:
        file.write(data)
        file.flush()
        return store.put(Path(file.name), sha256_file(Path(file.name)))


def read_bytes(store: ObjectStore, key: str) -> bytes:
    """A small object as bytes."""
    return b"".join(store.stream(key))


def fetch(store: ObjectStore, key: str, target: Path) -> None:
    """Copy an object to a file and check its digest.

    Raises:
        ObjectMissing: there is none.
        ObjectDamaged: the bytes are not those that were stored; the file is removed.
    """
    with target.open("wb") as file:
        for chunk in store.stream(key):
            file.write(chunk)
    if not key.endswith(sha256_file(target)):
        target.unlink()
        raise ObjectDamaged(f"object {key} does not have the digest that its key names")


def _key(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256}"


class DirectoryStore:
    """Objects as files of one directory; for one machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path, sha256: str) -> str:
        """As ObjectStore.put: written beside, synced, then renamed, so that no half object is ever seen."""
        target = self._root / _key(sha256)
        if target.exists():
            return _key(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("rb") as source,
            tempfile.NamedTemporaryFile(dir=self._root, delete=False) as file,
        ):
            shutil.copyfileobj(source, file, CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(target)
        return _key(sha256)

    def stream(self, key: str) -> Iterator[bytes]:
        """As ObjectStore.stream."""
        try:
            with (self._root / key).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError as error:
            raise ObjectMissing(key) from error

    def delete(self, key: str) -> None:
        """As ObjectStore.delete."""
        (self._root / key).unlink(missing_ok=True)

    def check(self) -> None:
        """As ObjectStore.check."""
        if not os.access(self._root, os.W_OK):
            raise PermissionError(f"{self._root} cannot be written")


class S3Store:
    """Objects in one bucket of MinIO or any other S3-compatible server."""

    def __init__(self, settings: Settings, bucket: str) -> None:
        endpoint = urlsplit(settings.s3_endpoint)
        self._bucket = bucket
        self._client = Minio(
            endpoint=endpoint.netloc,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=endpoint.scheme == "https",
            region="us-east-1",
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(S3_TIMEOUT_SECONDS),
                retries=urllib3.Retry(
                    total=S3_ATTEMPTS, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]
                ),
            ),
        )

    def put(self, path: Path, sha256: str) -> str:
        """As ObjectStore.put."""
        if not self._exists(_key(sha256)):
            self._client.fput_object(
                bucket_name=self._bucket,
                object_name=_key(sha256),
                file_path=str(path),
                part_size=PART_BYTES,
            )
        return _key(sha256)

    def _exists(self, key: str) -> bool:
        try:
            self._client.stat_object(bucket_name=self._bucket, object_name=key)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return False
            raise
        return True

    def stream(self, key: str) -> Iterator[bytes]:
        """As ObjectStore.stream."""
        try:
            response = self._client.get_object(bucket_name=self._bucket, object_name=key)
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise ObjectMissing(key) from error
            raise
        try:
            yield from response.stream(CHUNK_BYTES)
        finally:
            response.close()
            response.release_conn()

    def delete(self, key: str) -> None:
        """As ObjectStore.delete."""
        self._client.remove_object(bucket_name=self._bucket, object_name=key)

    def check(self) -> None:
        """As ObjectStore.check."""
        if not self._client.bucket_exists(bucket_name=self._bucket):
            raise MinioException(f"bucket {self._bucket!r} does not exist")
