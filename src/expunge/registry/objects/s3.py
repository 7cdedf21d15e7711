"""Objects in one bucket of MinIO or any other S3-compatible server. Never waits long: its callers try again."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from minio.error import S3Error
from urllib3.response import BaseHTTPResponse

from expunge.formats.digests import CHUNK_BYTES
from expunge.registry.objects.multipart import PAUSE_SECONDS, pause, send_file
from expunge.registry.objects.s3_client import S3Client, Unfinished, is_marked, reaching
from expunge.registry.objects.store import DirectPut, ObjectMissing, StoreUnavailable, key_of
from expunge.registry.settings import Settings

READ_SECONDS = 30
"""Without a byte from the server."""
FINISH_SECONDS = 600
"""Likewise, while it puts the parts of an object together: some servers copy all of it before they answer."""
RESUMED = 5
"""How often in a row a download goes on where it broke off without getting further."""

NO_SUCH_OBJECT = ("NoSuchKey", "NoSuchObject")
NOT_OFFERED = ("NotImplemented", "MethodNotAllowed", "AccessDenied")
"""Answers of servers that do not list unfinished uploads or know no versions, or do not say so to this key."""
KEEPS_VERSIONS = "the bucket keeps versions of its objects: what is deleted is hidden, not gone"
ENDED = "NoSuchUpload"
"""Answer about an upload that was completed or aborted since it was listed."""

logger = structlog.get_logger(__name__)


@contextmanager
def _object(key: str) -> Iterator[None]:
    """Around calls about an object that may not be there."""
    try:
        with reaching():
            yield
    except S3Error as error:
        if error.code in NO_SUCH_OBJECT:
            if is_marked(error.response):
                raise StoreUnavailable(f"{key}: {KEEPS_VERSIONS}") from error
            raise ObjectMissing(key) from error
        raise


class S3Store:
    """Objects of a bucket that must be there.

    A process that is killed in the middle of a put leaves parts that the server keeps and no listing
    of objects shows. `clean` ends them where the server lists them; a lifecycle rule of the bucket
    that aborts incomplete multipart uploads after a day does so everywhere.
    """

    def __init__(
        self,
        settings: Settings,
        bucket: str,
        *,
        read_seconds: float = READ_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._bucket = bucket
        self._pause_seconds = pause_seconds
        self._told = False
        self._encryption = _encryption_of(settings.s3_sse)
        self._client = S3Client(settings, bucket, settings.s3_endpoint, read_seconds=read_seconds)
        self._finisher = S3Client(
            settings, bucket, settings.s3_endpoint, read_seconds=max(read_seconds, FINISH_SECONDS)
        )
        self._public = settings.s3_public_endpoint and S3Client(
            settings, bucket, settings.s3_public_endpoint, read_seconds=read_seconds
        )

    def put(self, path: Path, sha256: str, *, under: str | None = None) -> str:
        """As ObjectStore.put."""
        key = key_of(sha256, under)
        try:
            there = self.size(key) == path.stat().st_size
        except ObjectMissing:
            there = False
        if not there:
            send_file(
                self._client,
                key,
                path,
                self._encryption,
                pause_seconds=self._pause_seconds,
                finisher=self._finisher,
            )
        return key

    def direct_put(self, key: str, size: int, sha256: str, seconds: float) -> DirectPut | None:
        """As ObjectStore.direct_put: where owners reach the server."""
        if not self._public:
            return None
        return self._public.signed_put(
            key, size=size, sha256=sha256, seconds=seconds, headers=self._encryption
        )

    def stream(self, key: str, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """As ObjectStore.stream; a connection that breaks is made again, from where it broke."""
        received, failures, etag = 0, 0, None
        while size is None or received < size:
            left = None if size is None else size - received
            try:
                with _object(key), self._response(key, start + received, left, etag) as response:
                    etag = response.headers.get("ETag")
                    for chunk in response.stream(CHUNK_BYTES):
                        received += len(chunk)
                        failures = 0
                        yield chunk
                    return
            except StoreUnavailable:
                failures += 1
                # Who has received nothing yet has nothing to lose by trying again later.
                if received == 0 or failures > RESUMED:
                    raise
            pause(failures, self._pause_seconds)

    def part(self, key: str, start: int, size: int) -> bytes:
        """As ObjectStore.part."""
        with _object(key), self._response(key, start, size) as response:
            return response.read()

    @contextmanager
    def _response(
        self, key: str, start: int, size: int | None, etag: str | None = None
    ) -> Iterator[BaseHTTPResponse]:
        response = self._client.get_object(
            bucket_name=self._bucket,
            object_name=key,
            offset=start,
            length=size or 0,
            request_headers={"If-Match": etag} if etag else None,
        )
        try:
            sent = response.headers.get("Content-Range", "")
            if (start or size) and not sent.startswith(f"bytes {start}-"):
                raise StoreUnavailable(f"the server sends {key} whole, not from byte {start} on")
            yield response
        finally:
            response.close()
            response.release_conn()

    def size(self, key: str) -> int:
        """As ObjectStore.size."""
        with _object(key):
            return self._client.size(key)

    def keys(self, under: str = "") -> Iterator[str]:
        """As ObjectStore.keys, a page of the server's at a time."""
        with reaching():
            for found in self._client.list_objects(
                bucket_name=self._bucket, prefix=under and f"{under}/", recursive=True
            ):
                yield found.object_name

    def delete(self, key: str) -> None:
        """As ObjectStore.delete; what a bucket with versions only hides is not said to be removed."""
        with reaching():
            removed = self._client.remove(key)
        if not removed:
            raise StoreUnavailable(f"{key}: {KEEPS_VERSIONS}")

    def clean(self, older_than_seconds: float) -> int:
        """As ObjectStore.clean: uploads whose newest part is older; none where the server lists none."""
        silent_since = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        try:
            with reaching():
                uploads = list(self._client.unfinished())
        except (StoreUnavailable, S3Error) as error:
            if _code(error) in NOT_OFFERED:
                return 0
            raise
        return sum(self._abort_if_silent(upload, silent_since) for upload in uploads)

    def _abort_if_silent(self, upload: Unfinished, since: datetime) -> bool:
        try:
            with reaching():
                written = self._client.last_written(upload)
                silent = written is not None and written <= since
                if silent:
                    self._client.abort(upload.key, upload.upload_id)
        except StoreUnavailable as error:
            if _code(error) == ENDED:
                return False
            raise
        return silent

    def check(self) -> None:
        """As ObjectStore.check; a bucket that keeps versions, or has some, cannot be used."""
        with reaching():
            if not self._client.bucket_exists(bucket_name=self._bucket):
                raise StoreUnavailable(f"bucket {self._bucket!r} does not exist")
        if (status := self._versioning()) is not None:
            raise StoreUnavailable(f"{self._bucket!r}: {KEEPS_VERSIONS} (versioning {status})")

    def _versioning(self) -> str | None:
        """As the server says; None where it does not, or not to this key: answers to deletions tell then."""
        try:
            with reaching():
                return self._client.versioning()
        except (StoreUnavailable, S3Error) as error:
            if isinstance(error, S3Error) or _code(error) in NOT_OFFERED:
                self._tell_once(error)
                return None
            raise

    def _tell_once(self, error: Exception) -> None:
        if not self._told:
            logger.warning("bucket-versioning-unknown", bucket=self._bucket, error=str(error))
        self._told = True


def _code(error: Exception) -> str | None:
    """What the server called the error."""
    cause = error.__cause__ if isinstance(error, StoreUnavailable) else error
    return cause.code if isinstance(cause, S3Error) else None


def _encryption_of(sse: str) -> dict[str, str]:
    """The headers that ask for the encryption that a setting names: none, s3 or kms:KEY."""
    kind, _, kms_key = sse.partition(":")
    if kind == "none":
        return {}
    if kind == "s3":
        return {"x-amz-server-side-encryption": "AES256"}
    return {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": kms_key,
    }
