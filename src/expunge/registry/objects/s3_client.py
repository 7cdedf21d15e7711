"""Calls of the S3 protocol: parts with checksums, URLs with signed headers. Never decides what to store."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.datatypes import CompleteMultipartUploadResult
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.signer import get_credential_string, sign_v4_s3
from minio.time import to_amz_date
from minio.xml import Element, SubElement, getbytes
from urllib3.response import BaseHTTPResponse

from expunge.registry.objects.store import DirectPut, StoreUnavailable
from expunge.registry.settings import Settings

CONNECT_SECONDS = 5
RETRIES = 1
"""For a kept connection that the server has closed; patience is the caller's."""
RETRY_STATUSES = [500, 502, 503, 504]

ALGORITHM = "SHA256"
CHECKSUM = "x-amz-checksum-sha256"
"""Header of the digest (base64) of what is sent; servers that know it refuse other bytes."""
CHECKSUM_ALGORITHM = "x-amz-sdk-checksum-algorithm"
MARKER = "x-amz-delete-marker"
UNSIGNED_BODY = "UNSIGNED-PAYLOAD"
"""What is signed in place of a body that the signer does not have."""

PASSING_CODES = (
    "NoSuchBucket",
    "NoSuchUpload",
    "PreconditionFailed",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "BadDigest",
    "XAmzContentChecksumMismatch",
)
"""Of answers whose status alone looks final; a bucket that is gone is an operator's to bring back."""
PASSING_STATUSES = (401, 403, 408, 429)
"""Besides 5xx; keys that are refused are an operator's to put right."""


@contextmanager
def reaching() -> Iterator[None]:
    """Turn what keeps a server from answering well into StoreUnavailable; other refusals pass as S3Error."""
    try:
        yield
    except (urllib3.exceptions.HTTPError, InvalidResponseError, ServerError, ParseError) as error:
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


def is_marked(response: BaseHTTPResponse) -> bool:
    """Whether an answer is about a marker that hides an object, whose versions are kept."""
    return response.headers.get(MARKER, "").lower() == "true"


class SentPart(NamedTuple):
    """A part that the server has: its number from 1, what the server calls it, its digest (base64)."""

    number: int
    etag: str
    checksum: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    begun_at: datetime | None


class S3Client(Minio):
    """The minio client, bound to a bucket, with the calls that its public ones do not make.

    Every call may raise what `reaching` turns into StoreUnavailable.
    """

    def __init__(
        self, settings: Settings, bucket: str, address: str, *, read_seconds: float
    ) -> None:
        endpoint = urlsplit(address)
        super().__init__(
            endpoint=endpoint.netloc,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=endpoint.scheme == "https",
            region=settings.s3_region,
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                retries=urllib3.Retry(
                    total=RETRIES, backoff_factor=0.2, status_forcelist=RETRY_STATUSES
                ),
                ca_certs=settings.s3_ca_file or None,
            ),
        )
        self._base_url.virtual_style_flag = settings.s3_addressing == "virtual"
        self._settings = settings
        self._bucket = bucket

    def size(self, key: str) -> int:
        """Bytes of an object."""
        return self.stat_object(bucket_name=self._bucket, object_name=key).size or 0

    def remove(self, key: str) -> bool:
        """Delete an object; False if the server says that it has only hidden it behind a marker."""
        return not is_marked(self._execute("DELETE", self._bucket, key))

    def versioning(self) -> str | None:
        """Whether the bucket keeps versions of its objects: "Enabled", "Suspended", None if it never has."""
        return self.get_bucket_versioning(self._bucket).status

    def send(self, key: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Store a whole object."""
        self._send(key, data, headers, {})

    def begin(self, key: str, headers: Mapping[str, str]) -> str:
        """Begin an upload in parts; its id."""
        algorithm = {"x-amz-checksum-algorithm": ALGORITHM}
        return self._create_multipart_upload(self._bucket, key, {**headers, **algorithm})

    def send_part(self, key: str, upload_id: str, number: int, data: bytes) -> SentPart:
        """Store a part of an object; the same number again replaces it."""
        part = {"partNumber": str(number), "uploadId": upload_id}
        return SentPart(number, *self._send(key, data, {}, part))

    def _build_headers(
        self,
        host: str,
        headers: dict[str, Any] | None = None,
        body: bytes | None = None,
        creds: Credentials | None = None,
    ) -> tuple[dict[str, Any], datetime]:
        """As the library's; a body whose digest is among the headers is not hashed again to sign it."""
        checksum = (headers or {}).get(CHECKSUM)
        if body is None or checksum is None:
            return super()._build_headers(host, headers, body, creds)
        built, date = super()._build_headers(host, headers, None, creds)
        built["Content-Length"] = str(len(body))
        built["x-amz-content-sha256"] = base64.b64decode(checksum).hex()
        return built, date

    def _send(
        self, key: str, data: bytes, headers: Mapping[str, str], query: Mapping[str, str]
    ) -> tuple[str, str]:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        announced = {CHECKSUM: checksum, CHECKSUM_ALGORITHM: ALGORITHM}
        answer = self._put_object(self._bucket, key, data, {**headers, **announced}, dict(query))
        headers_back = answer.http_headers
        if headers_back is not None and headers_back.get(CHECKSUM, checksum) != checksum:
            raise StoreUnavailable(f"the server received other bytes for {key} than were sent")
        return str(answer.etag), checksum

    def complete(self, key: str, upload_id: str, parts: Sequence[SentPart], size: int) -> None:
        """Make an object of the parts, in order, and see that it has so many bytes."""
        document = Element("CompleteMultipartUpload")
        for part in parts:
            element = SubElement(document, "Part")
            SubElement(element, "PartNumber", str(part.number))
            SubElement(element, "ETag", f'"{part.etag}"')
            SubElement(element, f"Checksum{ALGORITHM}", part.checksum)
        response = self._execute(
            "POST",
            self._bucket,
            key,
            body=getbytes(document),
            headers={"Content-Type": "application/xml"},
            query_params={"uploadId": upload_id},
        )
        # The status is sent before the parts are put together: an error may follow it.
        if not CompleteMultipartUploadResult(response).etag or self.size(key) != size:
            raise StoreUnavailable(f"the server did not put the parts of {key} together")

    def abort(self, key: str, upload_id: str) -> None:
        """Have the server forget an upload in parts."""
        self._abort_multipart_upload(self._bucket, key, upload_id)

    def unfinished(self) -> Iterator[Unfinished]:
        """Uploads in parts that have not ended, a page of the server's at a time.

        Of a key with several of them across the end of a page the next call shows the rest.
        """
        marker: str | None = None
        while True:
            page = self._list_multipart_uploads(self._bucket, key_marker=marker)
            for each in page.uploads:
                yield Unfinished(each.object_name, str(each.upload_id), each.initiated_time)
            if not (page.is_truncated and page.next_key_marker):
                return
            marker = page.next_key_marker

    def last_written(self, upload: Unfinished) -> datetime | None:
        """When the newest part of an upload arrived, or when it was begun."""
        times, marker = [upload.begun_at], "0"
        while True:
            page = self._list_parts(
                self._bucket, upload.key, upload.upload_id, part_number_marker=marker
            )
            times += [part.last_modified for part in page.parts]
            if not (page.is_truncated and page.next_part_number_marker):
                return max(filter(None, times), default=None)
            marker = page.next_part_number_marker

    def signed_put(
        self, key: str, *, size: int, sha256: str, seconds: float, headers: Mapping[str, str]
    ) -> DirectPut:
        """A URL that stores this object and no other, sent with the headers that come with it."""
        now, region = datetime.now(UTC), self._settings.s3_region
        credentials = Credentials(
            self._settings.s3_access_key, self._settings.s3_secret_key.get_secret_value()
        )
        own = {
            "Content-Length": str(size),
            CHECKSUM: base64.b64encode(bytes.fromhex(sha256)).decode(),
            CHECKSUM_ALGORITHM: ALGORITHM,
            **headers,
        }
        url = self._base_url.build(
            method="PUT",
            region=region,
            bucket_name=self._bucket,
            object_name=key,
            query_params={
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": get_credential_string(credentials.access_key, now, region),
                "X-Amz-Date": to_amz_date(now),
                "X-Amz-Expires": str(int(seconds)),
                "X-Amz-SignedHeaders": ";".join(sorted(map(str.lower, ["Host", *own]))),
            },
        )
        signed = sign_v4_s3(
            method="PUT",
            url=url,
            region=region,
            headers={"Host": url.netloc, **own},
            credentials=credentials,
            content_sha256=UNSIGNED_BODY,
            date=now,
        )
        signature = str(signed["Authorization"]).rpartition("Signature=")[2]
        return DirectPut(f"{urlunsplit(url)}&X-Amz-Signature={signature}", own)
