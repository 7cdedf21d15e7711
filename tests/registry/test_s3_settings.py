"""How an S3 server is spoken to: addresses, regions, encryption, certificates, and URLs that others are given."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeKey, s3_backends
from pydantic import ValidationError
from tests.registry.s3 import BUCKET, relay, settings_of, working_server

from expunge.formats.digests import sha256_file
from expunge.registry.objects import (
    PART_BYTES,
    DirectoryStore,
    DirectPut,
    S3Store,
    StoreUnavailable,
)

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
"""Of b"test"."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a running S3 server with one bucket."""
    with working_server() as address:
        yield address


def store_at(endpoint: str, **others: str) -> S3Store:
    return S3Store(settings_of(f"s3://{BUCKET}", endpoint, **others), BUCKET, read_seconds=5)


def signed_by_another(put: DirectPut, region: str) -> str:
    """The signature that botocore computes for the same request."""
    address = urlsplit(put.url)
    query = {name: values[0] for name, values in parse_qs(address.query).items()}
    query.pop("X-Amz-Signature")
    headers = {"Host": address.netloc, **put.headers}
    bare = f"{address.scheme}://{address.netloc}{address.path}"
    request = AWSRequest(method="PUT", url=bare, headers=headers, params=query)
    request.context["timestamp"] = query["X-Amz-Date"]
    signer = S3SigV4QueryAuth(Credentials("key", "secret"), "s3", region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    return str(signer.signature(text, request))


@pytest.mark.parametrize("addressing", ["path", "virtual"])
@pytest.mark.parametrize("sse", ["none", "s3", "kms:some-key"])
def test_a_url_for_others_binds_place_content_and_headers(addressing: str, sse: str) -> None:
    store = store_at(
        "http://inside:9000",
        s3_public_endpoint="https://s3.example.org",
        s3_region="eu-north-1",
        s3_addressing=addressing,
        s3_sse=sse,
    )
    put = store.direct_put("uploads/upl_1/x", 4, DIGEST, 90)
    assert put is not None
    address = urlsplit(put.url)
    where = {"path": ("s3.example.org", "/expunge"), "virtual": ("expunge.s3.example.org", "")}
    host, folder = where[addressing]
    assert (address.netloc, address.path) == (host, f"{folder}/uploads/upl_1/x")
    query = parse_qs(address.query)
    assert query["X-Amz-Expires"] == ["90"]
    names = set(query["X-Amz-SignedHeaders"][0].split(";"))
    assert names == {"host", *map(str.lower, put.headers)}
    assert {"content-length", "x-amz-checksum-sha256"} <= names
    assert ("x-amz-server-side-encryption" in names) == (sse != "none")
    assert query["X-Amz-Signature"] == [signed_by_another(put, "eu-north-1")]


def test_what_is_sent_to_the_url_is_stored_there(endpoint: str) -> None:
    store = store_at(endpoint, s3_public_endpoint=endpoint)
    put = store.direct_put(f"uploads/upl_1/{DIGEST}", 4, DIGEST, 60)
    assert put is not None
    answer = httpx.put(put.url, content=b"test", headers=put.headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert b"".join(store.stream(f"uploads/upl_1/{DIGEST}")) == b"test"


def test_without_an_address_for_others_there_is_no_such_url(endpoint: str, tmp_path: Path) -> None:
    assert store_at(endpoint).direct_put("uploads/x", 4, DIGEST, 60) is None
    assert DirectoryStore(tmp_path).direct_put("uploads/x", 4, DIGEST, 60) is None


@pytest.mark.parametrize(
    ("sse", "applied"),
    [("none", (None, None)), ("s3", ("AES256", None)), ("kms:a-key", ("aws:kms", "a-key"))],
)
@pytest.mark.parametrize("size", [4, PART_BYTES + 1])
def test_objects_are_encrypted_as_the_setting_says(
    endpoint: str, tmp_path: Path, size: int, sse: str, applied: tuple[str | None, str | None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    key = store_at(endpoint, s3_sse=sse).put(path, sha256_file(path), under=f"as/{sse[:3]}")
    found = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(BUCKET, key)
    assert isinstance(found, FakeKey)
    assert (found.encryption, found.kms_key_id) == applied


def test_calls_are_signed_for_the_region(endpoint: str) -> None:
    with relay(endpoint, lambda *_: None) as between:
        store_at(between.endpoint, s3_region="eu-north-1").check()
        assert "/eu-north-1/s3/aws4_request" in between.headers[0]["Authorization"]


@pytest.mark.parametrize(
    "wrong", [{"s3_sse": "kms:"}, {"s3_sse": "aes"}, {"s3_addressing": "host"}]
)
def test_a_setting_that_says_nothing_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        settings_of(f"s3://{BUCKET}", "http://x", **wrong)


def certified(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of 127.0.0.1 that no system trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "key.pem", folder / "certificate.pem"
    files[0].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    files[1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return files


class Agreeing(BaseHTTPRequestHandler):
    """Has every bucket, without versions."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"<VersioningConfiguration/>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def encrypted_server(key: Path, certificate: Path) -> Iterator[str]:
    """Address of an https server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Agreeing)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_server_is_trusted_by_the_certificates_that_are_set(tmp_path: Path) -> None:
    key, certificate = certified(tmp_path)
    with encrypted_server(key, certificate) as address:
        store_at(address, s3_ca_file=str(certificate)).check()
        with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            store_at(address).check()
