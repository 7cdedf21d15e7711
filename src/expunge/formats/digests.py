"""SHA-256 digests as text: `sha256:<hex>` in JSON, RFC 9530 `sha-256=:<base64>:` in the Content-Digest header."""

import base64
import binascii
import hashlib
import re
from pathlib import Path

CHUNK_BYTES = 2**20
_CONTENT_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]+):\s*(?:,|$)")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(sha256_hex: str) -> str:
    """The value of a Content-Digest header (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256_hex)).decode()}:"


def parse_content_digest(header: str) -> str:
    """The hexadecimal SHA-256 in a Content-Digest header.

    Raises:
        ValueError: the header carries no well-formed sha-256 member.
    """
    found = _CONTENT_DIGEST.search(header)
    try:
        digest = base64.b64decode(found.group(1), validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("expected Content-Digest: sha-256=:<base64 of 32 bytes>:")
    return digest.hex()
