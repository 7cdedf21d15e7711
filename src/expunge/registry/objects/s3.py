"""Objects in one bucket of MinIO or any other S3-compatible server. Never waits long: its callers try again."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError

from expunge.formats.digests import CHUNK_BYTES
from expunge.registry.objects.store import ObjectMissing, StoreUnavailable, key_of
from expunge.registry.settings import Settings

CONNECT_SECONDS = 5
READ_SECONDS = 30
"""Without a byte from the server."""
RETRIES = 1
"""For a kept connection that the server has closed; patience is the caller's."""
PART_BYTES = 16 * 2**20

NO_SUCH_OBJECT = ("NoSuchKey", "NoSuchObject")
PASSING_CODES = ("NoSuchBucket", "RequestTimeout", "RequestTimeTooSkewed", "SlowDown")
"""Of answers whose status alone looks final; a bucket that is gone is an operator's to bring back."""
PASSING_STATUSES = (401, 403, 408, 429)
"""Besides 5xx; keys that are refused are an operator's to put right."""


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, InvalidResponseError, ServerError) as error:
        raise StoreUnavailable(str(error)) from error
    except S3Error as error:
        status = error.response.status
        if (
            error.code in PASSING_CODES
            or status in PASSING_STATUSES
            or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        ):
            raise StoreUnavailable(str(error)) from error
        raise


class S3Store:
    """Objects of a bucket that must be there.

    A put that broke in the middle leaves parts that the server keeps and no listing shows: give the
    bucket a lifecycle rule that aborts incomplete multipart uploads after a day.
    """

    def __init__(
        self, settings: Settings, bucket: str, *, read_seconds: float = READ_SECONDS
    ) -> None:
        endpoint = urlsplit(settings.s3_endpoint)
        self._bucket = bucket
        self._client = Minio(
            endpoint=endpoint.netloc,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=endpoint.scheme == "https",
            region="us-east-1",
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                retries=urllib3.Retry(
                    total=RETRIES, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]
                ),
            ),
        )

    def put(self, path: Path, sha256: str, *, under: str | None = None) -> str:
        """As ObjectStore.put."""
        key = key_of(sha256, under)
        try:
            there = self.size(key) == path.stat().st_size
        except ObjectMissing:
            there = False
        if not there:
            with _reaching():
                self._client.fput_object(
                    bucket_name=self._bucket,
                    object_name=key,
                    file_path=str(path),
                    part_size=PART_BYTES,
                    # Several at once try all parts of a file before they report that one failed.
                    num_parallel_uploads=1,
                )
        return key

    def stream(self, key: str) -> Iterator[bytes]:
        """As ObjectStore.stream."""
        with _reaching():
            try:
                response = self._client.get_object(bucket_name=self._bucket, object_name=key)
            except S3Error as error:
                if error.code in NO_SUCH_OBJECT:
                    raise ObjectMissing(key) from error
                raise
            try:
                yield from response.stream(CHUNK_BYTES)
            finally:
                response.close()
                response.release_conn()

    def part(self, key: str, start: int, size: int) -> bytes:
        """As ObjectStore.part."""
        with _reaching():
            try:
                response = self._client.get_object(
                    bucket_name=self._bucket, object_name=key, offset=start, length=size
                )
            except S3Error as error:
                if error.code in NO_SUCH_OBJECT:
                    raise ObjectMissing(key) from error
                raise
            try:
                return response.read()
            finally:
                response.close()
                response.release_conn()

    def size(self, key: str) -> int:
        """As ObjectStore.size."""
        with _reaching():
            try:
                found = self._client.stat_object(bucket_name=self._bucket, object_name=key)
            except S3Error as error:
                if error.code in NO_SUCH_OBJECT:
                    raise ObjectMissing(key) from error
                raise
            return found.size or 0

    def keys(self) -> Iterator[str]:
        """As ObjectStore.keys, a page of the server's at a time."""
        with _reaching():
            for found in self._client.list_objects(bucket_name=self._bucket, recursive=True):
                yield found.object_name

    def delete(self, key: str) -> None:
        """As ObjectStore.delete."""
        with _reaching():
            self._client.remove_object(bucket_name=self._bucket, object_name=key)

    def clean(self, older_than_seconds: float) -> int:
        """As ObjectStore.clean: the bucket's lifecycle rule does that (see the class)."""
        del older_than_seconds
        return 0

    def check(self) -> None:
        """As ObjectStore.check."""
        with _reaching():
            if not self._client.bucket_exists(bucket_name=self._bucket):
                raise StoreUnavailable(f"bucket {self._bucket!r} does not exist")
