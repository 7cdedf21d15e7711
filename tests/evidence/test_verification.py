"""A certificate proves what it says, and nothing of it, of the log or of a checkpoint changes unnoticed."""

import base64
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given as over
from hypothesis import strategies as st
from tests.evidence.papers import (
    REPORT,
    WEIGHTS,
    Paper,
    new_signer,
    paper,
    position,
    rows,
    sha256,
    shown,
)

from expunge.evidence.canonical import NotCanonical, canonical
from expunge.evidence.certificate import PAYLOAD_TYPE, Issuer
from expunge.evidence.chain import ROW_MEMBERS
from expunge.evidence.verification import Given, Link, rows_file, verified


@pytest.fixture(scope="module")
def issued() -> Paper:
    return paper()


def json_file(rows: Sequence[Any]) -> bytes:
    """As `rows_file` writes it, if it can."""
    try:
        return canonical(list(rows))
    except NotCanonical:
        return json.dumps(rows).encode()


def states(links: list[Link]) -> dict[str, str]:
    return {link.name: link.status for link in links}


def broken(links: list[Link]) -> dict[str, str]:
    """The messages of the links that broke."""
    return {link.name: link.message for link in links if link.status == "BROKEN"}


def test_every_link_of_a_true_certificate_holds(issued: Paper) -> None:
    links = verified(
        issued.file(),
        Given(issued.chain[0].public_key, sha256(WEIGHTS["result"]), rows_file(shown(rows()))),
    )
    assert states(links) == dict.fromkeys(
        [
            "envelope",
            "statement",
            "key",
            "signature",
            "tree head",
            "inclusion",
            "log rows",
            "checkpoint",
        ],
        "OK",
    )


def test_without_a_key_the_issuer_is_not_checked_and_that_is_said(issued: Paper) -> None:
    links = verified(issued.file(), Given())
    assert states(links)["key"] == "NOT CHECKED"
    assert states(links)["signature"] == "OK"
    assert not broken(links)


VALUES = {
    "payload": {"statement", "signature"},
    "payloadType": {"signature"},
    "keyid": {"signature"},
    "sig": {"signature"},
}
"""Which link breaks when a value of the envelope changes and can still be read."""


def test_no_byte_of_a_certificate_changes_unnoticed_and_the_link_that_broke_is_named(
    issued: Paper,
) -> None:
    data = issued.file()
    given = Given(issued.chain[0].public_key)
    links = [{"envelope"} for _ in data]
    for name, named in VALUES.items():
        start = data.index(f'"{name}":"'.encode()) + len(name) + 4
        for place in range(start, data.index(b'"', start)):
            links[place] = named | {"envelope"}
    for place, named in enumerate(links):
        for mask in (1 << place % 8, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= mask
            found = broken(verified(bytes(damaged), given))
            assert named & set(found), (place, mask)
            assert all(found.values()), "each says why"


def test_no_byte_of_what_it_says_changes_unnoticed(issued: Paper) -> None:
    envelope, given = json.loads(issued.file()), Given(issued.chain[0].public_key)
    content = base64.b64decode(envelope["payload"])
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        changed = envelope | {"payload": base64.b64encode(damaged).decode()}
        found = broken(verified(canonical(changed), given))
        assert {"statement", "signature"} & set(found), place


def test_no_byte_of_its_row_proof_or_head_changes_unnoticed_though_the_issuer_signs_it(
    issued: Paper,
) -> None:
    """An issuer who rewrote the log has no proof under a head that somebody else has kept."""
    content = base64.b64decode(json.loads(issued.file())["payload"])
    start = content.index(b'"log":{')
    end = content.index(b',"method":')
    given = Given(issued.chain[0].public_key)
    for place in range(start, end):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        forged = canonical(issued.chain[-1].sign(PAYLOAD_TYPE, bytes(damaged)))
        found = broken(verified(forged, given))
        assert {"statement", "inclusion", "tree head"} & set(found), place
        assert not {"envelope", "signature", "key"} & set(found), place


def test_damage_is_named_by_the_link_that_broke(issued: Paper) -> None:
    data, given = issued.file(), Given(issued.chain[0].public_key)
    envelope = json.loads(data)
    signature = envelope["signatures"][0]["sig"]
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    other = paper().file(edition=2)
    swapped = envelope | {"payload": json.loads(other)["payload"]}
    cases = {
        "envelope": [data[1:], b"", b"\xff", data + b" ", data.replace(b"keyid", b"keyed")],
        "statement": [canonical(issued.chain[0].sign(PAYLOAD_TYPE, b"{}"))],
        "signature": [data.replace(signature.encode(), flipped.encode())],
        "key": [canonical(swapped)],
    }
    for name, files in cases.items():
        for file in files:
            assert name in broken(verified(file, given)), name


def test_a_line_end_that_an_editor_adds_is_no_damage(issued: Paper) -> None:
    assert not broken(verified(issued.file() + b"\n", Given(issued.chain[0].public_key)))


def test_another_key_is_told_from_the_issuers(issued: Paper) -> None:
    stranger = new_signer().public_key
    found = broken(verified(issued.file(), Given(stranger)))
    assert set(found) == {"key"}
    assert stranger.id in found["key"]


def test_a_certificate_that_somebody_else_signs_in_the_services_name_is_found_out(
    issued: Paper,
) -> None:
    forger = new_signer()
    forged = Paper([forger], issued.predicate).file()
    assert "signature" in broken(verified(forged, Given(issued.chain[0].public_key)))
    renamed = json.loads(forged)
    renamed["signatures"][0]["keyid"] = issued.chain[0].key_id
    found = broken(verified(canonical(renamed), Given(issued.chain[0].public_key)))
    assert "does not match the content" in found["signature"]


def test_after_two_rotations_every_key_so_far_proves_a_new_certificate() -> None:
    chain = [new_signer() for _ in range(3)]
    late = paper(chain)
    for signer in chain:
        assert not broken(verified(late.file(), Given(signer.public_key)))


def test_an_old_certificate_stays_valid_for_its_key_and_says_why_a_later_one_cannot_prove_it() -> (
    None
):
    chain = [new_signer() for _ in range(2)]
    early = paper(chain[:1])
    assert not broken(verified(early.file(), Given(chain[0].public_key)))
    found = broken(verified(early.file(), Given(chain[1].public_key)))
    assert "when the certificate was issued, or an earlier one" in found["key"]


def test_a_certificate_by_a_key_that_was_retired_or_that_nobody_introduced_says_so() -> None:
    """The successions that it holds lead to another key than the one that signed."""
    old, new, stranger = (new_signer() for _ in range(3))
    honest = paper([old, new])
    retired = Paper([old], honest.predicate).file()
    for key in (old, new):
        found = broken(verified(retired, Given(key.public_key)))
        assert set(found) == {"signature"}
        assert (
            f"signed with key '{old.key_id}', which is not one to be accepted" in found["signature"]
        )
    keys = honest.predicate.issuer.keys
    posing = Issuer(key_id=old.key_id, keys=keys)
    found = broken(
        verified(Paper([old], honest.predicate).file(issuer=posing), Given(old.public_key))
    )
    assert "is not the last of the succession" in found["key"]
    unknown = paper([stranger])
    made_up = Issuer(
        key_id=stranger.key_id,
        keys=[
            *keys,
            unknown.predicate.issuer.keys[0].model_copy(
                update={"introduced_by": keys[1].introduced_by}
            ),
        ],
    )
    found = broken(verified(unknown.file(issuer=made_up), Given(old.public_key)))
    assert f"the succession from key {new.key_id} to key {stranger.key_id}" in found["key"]


def test_a_head_signed_by_the_key_before_counts() -> None:
    chain = [new_signer() for _ in range(2)]
    late = paper(chain, head_signer=chain[0])
    for signer in chain:
        assert not broken(verified(late.file(), Given(signer.public_key)))


def test_a_head_or_row_that_the_issuer_made_up_is_found_out(issued: Paper) -> None:
    key, log = issued.chain[0].public_key, issued.predicate.log
    foreign = position(rows(), 2, new_signer())
    assert "tree head" in broken(verified(issued.file(log=foreign), Given(key)))
    other_row = log.model_copy(update={"row": log.row | {"at": "2026-05-04T12:00:04.000000Z"}})
    assert set(broken(verified(issued.file(log=other_row), Given(key)))) == {"inclusion"}
    other_subject = log.model_copy(update={"row": log.row | {"subject_id": "req_2"}})
    assert set(broken(verified(issued.file(log=other_subject), Given(key)))) == {"statement"}
    moved = log.model_copy(update={"position": 1})
    assert set(broken(verified(issued.file(log=moved), Given(key)))) == {"inclusion"}
    short = log.model_copy(update={"inclusion": ["00", *log.inclusion[1:]]})
    assert set(broken(verified(issued.file(log=short), Given(key)))) == {"inclusion"}
    no_proof = log.model_copy(update={"inclusion": ["no hash"]})
    assert set(broken(verified(issued.file(log=no_proof), Given(key)))) == {"inclusion"}
    incomplete = log.model_copy(
        update={"row": {name: log.row[name] for name in ("subject_id", "event")}}
    )
    assert set(broken(verified(issued.file(log=incomplete), Given(key)))) == {"inclusion"}


@pytest.mark.parametrize("index", [0, 2, 4])
def test_no_byte_of_a_row_changes_unnoticed_and_the_row_is_named(issued: Paper, index: int) -> None:
    """Its columns, its place, its hash and its proof; the certificate's own row and others."""
    log = shown(rows())
    given = partial(Given, issued.chain[0].public_key)
    before, data = rows_file(log[:index])[:-1] + b"," * (index > 0), canonical(log[index])
    after = b"," * (index + 1 < len(log)) + rows_file(log[index + 1 :])[1:]
    assert not broken(verified(issued.file(), given(rows=before + data + after)))
    for place in range(len(data)):
        # 0x20 turns letters large and small: a row must not be spelt in two ways.
        for mask in {1 << place % 8, 0x20}:
            damaged = bytearray(data)
            damaged[place] ^= mask
            found = broken(verified(issued.file(), given(rows=before + damaged + after)))
            assert set(found) == {"log rows"}, (place, mask)
            with suppress(ValueError):
                row = json.loads(damaged)
                if canonical(row) == damaged and row.get("seq") == index + 1:
                    assert re.match(rf"row {index + 1}\b", found["log rows"]), (place, found)


@pytest.mark.parametrize("member", [*ROW_MEMBERS, "sealed", "position", "leaf_hash", "path"])
def test_every_column_of_a_row_is_held_to_what_was_sealed(issued: Paper, member: str) -> None:
    log = shown(rows())
    others: list[Any] = [None, True, False, 0, 1, 99, "", "x", [], ["00"], {}, {"number": 1}]
    for index, row in enumerate(log):
        for other in others:
            if other == row[member] and type(other) is type(row[member]):
                continue
            changed = [*log[:index], row | {member: other}, *log[index + 1 :]]
            assert "log rows" in broken(verified(issued.file(), Given(rows=rows_file(changed)))), (
                row,
                other,
            )
        without = {name: value for name, value in row.items() if name != member}
        changed = [*log[:index], without, *log[index + 1 :]]
        assert "log rows" in broken(verified(issued.file(), Given(rows=rows_file(changed)))), row


def test_rows_are_told_apart_and_the_certificates_own_must_be_among_them(issued: Paper) -> None:
    log = shown(rows())

    def said(*given: Any) -> str:
        return broken(verified(issued.file(), Given(rows=json_file(given)))).get("log rows", "")

    assert not said(*log)
    changed = log[0] | {"detail": {"number": 7}}
    assert said(changed, *log[1:]) == "row 1: its content does not have the leaf hash beside it"
    assert "row 3, which" in said(*log[:2])
    assert "row 3 is not the one" in said(log[2] | {"position": 1})
    assert "row 1: its place is not proven" in said(log[0] | {"position": 1}, *log[1:])
    swapped = log[0] | {"path": log[1]["path"]}
    assert "row 1: its place is not proven" in said(swapped, *log[1:])
    loud = log[0] | {"path": [each.upper() for each in log[0]["path"]]}
    assert "not written as" in said(loud, *log[1:])
    assert "there is no proof beside it" in said(*log[:3], log[3] | {"path": None})
    assert "row 4 is not as" in said(*log[:3], log[3] | {"sealed": False})
    assert "row 4 is not as" in said(*log[:3], log[3] | {"more": 1})
    for nothing in (None, {}, []):
        assert said(nothing)


@pytest.mark.parametrize("name", ["base", "result"])
@pytest.mark.parametrize("released", [b"", b" released"])
def test_the_certificates_checkpoints_are_recognised_and_no_other_file(
    issued: Paper, name: str, released: bytes
) -> None:
    weights = WEIGHTS[name] + released
    links = verified(issued.file(), Given(checkpoint_sha256=sha256(weights)))
    assert name in next(link.message for link in links if link.name == "checkpoint")
    for place in range(len(weights)):
        changed = bytearray(weights)
        changed[place] ^= 4
        given = Given(checkpoint_sha256=sha256(bytes(changed)))
        assert "none of the certificate's" in broken(verified(issued.file(), given))["checkpoint"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@over(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_handed_in_is_answered(data: bytes) -> None:
    assert broken(verified(data, Given()))


@over(st.lists(JSON, max_size=3))
def test_whatever_is_handed_in_as_rows_is_answered(issued: Paper, found: list[Any]) -> None:
    assert "log rows" in broken(verified(issued.file(), Given(rows=json_file(found))))


def test_nested_beyond_reason_is_answered(issued: Paper) -> None:
    for depth in (500, 100_000):
        assert broken(verified(b"[" * depth + b"]" * depth, Given()))
        given = Given(rows=b"[" * depth + b"]" * depth)
        assert "log rows" in broken(verified(issued.file(), given))


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ({"id": "aud_1", "report": REPORT}, None),
        ({"id": "aud_1", "report": REPORT | {"n_own": 9}}, "is not the one that the certificate"),
        ({"id": "aud_2", "report": REPORT}, "relies on 'aud_1'"),
        ({"id": "aud_1"}, "no audit with a report"),
        ([], "no audit with a report"),
        ({"id": "aud_1", "report": {"p": float("nan")}}, "has no digest"),
    ],
)
def test_an_audit_is_told_from_the_one_that_the_certificate_relies_on(
    issued: Paper, audit: object, message: str | None
) -> None:
    links = verified(issued.file(), Given(issued.chain[0].public_key, audit=audit))
    assert states(links)["audit"] == ("OK" if message is None else "BROKEN")
    assert message is None or message in broken(links)["audit"]
