"""Digests as text, there and back."""

import base64
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.formats.digests import content_digest, parse_content_digest, sha256_file


@given(st.binary(max_size=200))
def test_a_header_comes_back_as_the_digest_it_was_made_of(data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    header = content_digest(digest)
    assert parse_content_digest(header) == digest
    assert parse_content_digest(f"sha-512=:AAAA:, {header}") == digest
    assert parse_content_digest(f"{header}, md5=:AAAA:") == digest


@given(st.text(max_size=120))
def test_any_other_text_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="Content-Digest"):
        parse_content_digest(header)


@pytest.mark.parametrize(
    "header",
    [
        "sha-256=:" + base64.b64encode(b"x" * 31).decode() + ":",
        "sha-256=:" + base64.b64encode(b"x" * 33).decode() + ":",
        "sha-256=:====:",
        "sha-256=" + base64.b64encode(b"x" * 32).decode(),
        "xsha-256=:" + base64.b64encode(b"x" * 32).decode() + ":",
    ],
)
def test_a_digest_of_another_length_or_form_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        parse_content_digest(header)


def test_a_file_is_hashed_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"ab" * 2_000_000)
    assert sha256_file(path) == hashlib.sha256(b"ab" * 2_000_000).hexdigest()
