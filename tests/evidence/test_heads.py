"""Rows, chain and heads: whatever changes is another hash, and a head says what was signed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from expunge.evidence.chain import GENESIS, Row, link, moment
from expunge.evidence.heads import PAYLOAD_TYPE, Head, opened
from expunge.evidence.merkle import leaf_hash
from expunge.evidence.signing import BadSignature, Signer

ROW = Row(
    seq=7,
    at="2026-05-04T12:00:00.000000Z",
    actor="pty_1",
    subject_id="req_1",
    event="received",
    detail={"b": 1, "a": [0.5, None]},
    salt="6f1c7a52-0000-4000-8000-000000000000",
)
HEAD = Head(3, bytes(32), bytes(range(32)), "2026-05-04T12:00:00.000000Z")


def test_a_leaf_is_the_rows_canonical_json() -> None:
    content = (
        b'{"actor":"pty_1","at":"2026-05-04T12:00:00.000000Z","detail":{"a":[0.5,null],"b":1},'
        b'"event":"received","salt":"6f1c7a52-0000-4000-8000-000000000000","seq":7,'
        b'"subject_id":"req_1"}'
    )
    assert ROW.content() == content
    assert ROW.leaf() == leaf_hash(content)


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"at": "2026-05-04T12:00:00.000001Z"},
        {"actor": "pty_2"},
        {"subject_id": "req_2"},
        {"event": "approved"},
        {"detail": {"b": 1, "a": [0.5, False]}},
        {"salt": "6f1c7a52-0000-4000-8000-000000000001"},
    ],
)
def test_every_member_of_a_row_is_in_its_leaf(change: dict[str, Any]) -> None:
    assert replace(ROW, **change).leaf() != ROW.leaf()


def test_a_moment_is_written_in_utc_to_the_microsecond() -> None:
    at = datetime(2026, 5, 4, 12, 0, 0, 5, UTC)
    assert moment(at) == "2026-05-04T12:00:00.000005Z"
    assert moment(at.astimezone(timezone(timedelta(hours=5)))) == moment(at)


def test_a_chain_hash_binds_all_leaves_before_it_in_their_order() -> None:
    a, b = bytes(32), bytes([1]) * 32
    assert link(link(GENESIS, a), b) != link(link(GENESIS, b), a)
    assert link(GENESIS, a) != link(a, a)


def test_a_signed_head_is_opened_with_its_key_only() -> None:
    signer, other = (Signer(Ed25519PrivateKey.generate()) for _ in range(2))
    envelope = signer.sign(PAYLOAD_TYPE, HEAD.payload())
    assert opened(envelope, [other.public_key, signer.public_key]) == HEAD
    with pytest.raises(BadSignature, match="not one to be accepted"):
        opened(envelope, [other.public_key])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        HEAD.payload() + b" ",
        HEAD.payload().replace(b'"size":3', b'"size":3.0'),
        HEAD.payload().replace(b'"size":3', b'"size":"3"'),
        HEAD.payload().replace(b'"size":3', b'"size":true'),
        HEAD.payload().replace(b'"size"', b'"extra":1,"size"'),
        HEAD.payload().replace(b"00" * 32, b"00" * 31),
        b"\xff",
    ],
)
def test_what_is_signed_but_no_head_is_refused(payload: bytes) -> None:
    signer = Signer(Ed25519PrivateKey.generate())
    with pytest.raises(BadSignature, match="no tree head"):
        opened(signer.sign(PAYLOAD_TYPE, payload), [signer.public_key])


def test_another_kind_of_statement_is_no_head() -> None:
    signer = Signer(Ed25519PrivateKey.generate())
    with pytest.raises(BadSignature, match="is expected"):
        opened(signer.sign("application/other", HEAD.payload()), [signer.public_key])
