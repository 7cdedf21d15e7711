"""One key follows another: trust in an early key reaches the later ones, and nothing else does."""

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from expunge.evidence.signing import BadSignature, Signer
from expunge.evidence.succession import PAYLOAD_TYPE, KnownKey, Succession, follow

AT = datetime(2026, 5, 4, 12, tzinfo=UTC)


def signers(number: int) -> list[Signer]:
    return [Signer(Ed25519PrivateKey.generate()) for _ in range(number)]


def known(chain: list[Signer]) -> list[KnownKey]:
    """The keys, each introduced by the one before."""
    return [
        KnownKey(
            key_id=signer.key_id,
            public_key=signer.public_key.pem,
            since=AT.isoformat(),
            introduced_by=Succession.signed(chain[place - 1], signer.public_key, AT)
            if place
            else None,
        )
        for place, signer in enumerate(chain)
    ]


def test_trust_reaches_all_later_keys_and_no_earlier_one() -> None:
    chain = signers(4)
    for place, pinned in enumerate(chain):
        trusted = follow(pinned.public_key, known(chain))
        assert trusted == [each.public_key for each in chain[place:]]


def test_a_key_that_is_not_among_them_reaches_nothing() -> None:
    (stranger,) = signers(1)
    with pytest.raises(BadSignature, match="no succession leads from your key"):
        follow(stranger.public_key, known(signers(2)))


def test_a_key_that_nobody_introduced_is_refused() -> None:
    chain = signers(2)
    first, second = known(chain)
    with pytest.raises(BadSignature, match="succession from key"):
        follow(chain[0].public_key, [first, second.model_copy(update={"introduced_by": None})])


def test_a_key_introduced_by_a_stranger_is_refused() -> None:
    old, new, stranger = signers(3)
    chain = known([old, new])
    forged = Succession.signed(stranger, new.public_key, AT)
    forged["signatures"][0]["keyid"] = old.key_id
    chain[1] = chain[1].model_copy(update={"introduced_by": forged})
    with pytest.raises(BadSignature, match="does not match"):
        follow(old.public_key, chain)


def test_a_key_cannot_take_the_place_of_the_one_that_was_introduced() -> None:
    old, new, stranger = signers(3)
    first, second = known([old, new])
    taken = second.model_copy(
        update={"key_id": stranger.key_id, "public_key": stranger.public_key.pem}
    )
    with pytest.raises(BadSignature, match="introduced another key"):
        follow(old.public_key, [first, taken])
    named = second.model_copy(update={"public_key": stranger.public_key.pem})
    with pytest.raises(BadSignature, match="under its name"):
        follow(old.public_key, [first, named])
    no_key = second.model_copy(update={"public_key": "nothing"})
    with pytest.raises(BadSignature, match="no public key"):
        follow(old.public_key, [first, no_key])


def test_another_statement_of_the_old_key_is_no_succession() -> None:
    old, new = signers(2)
    first, second = known([old, new])
    other = second.model_copy(update={"introduced_by": old.sign(PAYLOAD_TYPE, b"{}")})
    with pytest.raises(BadSignature, match="no statement that a key follows"):
        follow(old.public_key, [first, other])
