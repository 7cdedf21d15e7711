"""A certificate proves what it says, and nothing of it, of the log or of a checkpoint changes unnoticed."""

import json
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

from expunge.evidence.canonical import canonical
from expunge.evidence.certificate import PAYLOAD_TYPE
from expunge.evidence.verification import Given, Link, verified


@pytest.fixture(scope="module")
def issued() -> Paper:
    return paper()


def states(links: list[Link]) -> dict[str, str]:
    return {link.name: link.status for link in links}


def broken(links: list[Link]) -> dict[str, str]:
    """The messages of the links that broke."""
    return {link.name: link.message for link in links if link.status == "BROKEN"}


def test_every_link_of_a_true_certificate_holds(issued: Paper) -> None:
    links = verified(
        issued.file(),
        Given(issued.chain[0].public_key, sha256(WEIGHTS["result"]), shown(rows())),
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


def test_no_byte_of_a_certificate_changes_unnoticed(issued: Paper) -> None:
    data = issued.file()
    given = Given(issued.chain[0].public_key)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        assert broken(verified(bytes(damaged), given)), place


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


def test_no_byte_of_a_row_changes_unnoticed(issued: Paper) -> None:
    shown_row = shown(rows())[2]
    data = json.dumps([shown_row]).encode()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1
        try:
            found = json.loads(damaged)
        except ValueError:
            continue  # no reader takes this for rows
        given = Given(issued.chain[0].public_key, rows=found if isinstance(found, list) else [1])
        assert found == [shown_row] or "log rows" in broken(verified(issued.file(), given)), place


def test_rows_are_told_apart_and_the_certificates_own_must_be_among_them(issued: Paper) -> None:
    log = shown(rows())
    changed = [log[0] | {"detail": {"number": 7}}, *log[1:]]
    found = broken(verified(issued.file(), Given(rows=changed)))
    assert found == {"log rows": "row 1: its content does not have the leaf hash beside it"}
    without = broken(verified(issued.file(), Given(rows=log[:2])))
    assert "row 3" in without["log rows"]
    elsewhere = [log[2] | {"position": 1}]
    assert "not the one" in broken(verified(issued.file(), Given(rows=elsewhere)))["log rows"]
    unsealed = {"sealed": False, "leaf_hash": None}
    told = verified(issued.file(), Given(rows=[*log[:3], log[3] | unsealed]))
    assert "3 rows have their leaf hashes" in told[-1].message
    assert "1 were not sealed yet" in told[-1].message
    hidden = broken(verified(issued.file(), Given(rows=[log[2] | unsealed])))
    assert "not among the sealed" in hidden["log rows"]
    for nothing in ([None], [{}], [[]]):
        assert "log rows" in broken(verified(issued.file(), Given(rows=nothing)))


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
    assert "log rows" in broken(verified(issued.file(), Given(rows=found)))


def test_nested_beyond_reason_is_answered(issued: Paper) -> None:
    for depth in (500, 100_000):
        assert broken(verified(b"[" * depth + b"]" * depth, Given()))
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    given = Given(rows=[shown(rows())[2] | {"detail": deep}])
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
