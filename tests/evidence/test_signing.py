"""Keys and envelopes: what one key signs, no other key and no changed byte passes for."""

import base64
import json
from copy import deepcopy
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from expunge.evidence.signing import (
    BadSignature,
    PublicKey,
    Signer,
    UnusableKey,
    pre_authentication_encoding,
    signed_by,
    verify,
)

TYPE = "application/vnd.expunge.test+json"
PAYLOAD = b'{"hello":"world"}'


@pytest.fixture
def signer() -> Signer:
    return Signer(Ed25519PrivateKey.generate())


def test_an_envelope_gives_its_payload_back(signer: Signer) -> None:
    envelope = signer.sign(TYPE, PAYLOAD)
    assert verify(envelope, [signer.public_key], TYPE) == PAYLOAD
    assert signed_by(envelope) == signer.key_id


def test_what_is_signed_is_the_specifications_example() -> None:
    """https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, test vectors."""
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_another_implementation_of_dsse_accepts_an_envelope(signer: Signer) -> None:
    envelope = Envelope.from_dict(deepcopy(signer.sign(TYPE, PAYLOAD)))
    raw = signer._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key = SSlibKey(signer.key_id, "ed25519", "ed25519", {"public": raw.hex()})
    assert set(envelope.verify([key], 1)) == {signer.key_id}


def test_another_key_is_refused_by_name(signer: Signer) -> None:
    other = Signer(Ed25519PrivateKey.generate())
    with pytest.raises(BadSignature, match=signer.key_id):
        verify(signer.sign(TYPE, PAYLOAD), [other.public_key], TYPE)


def test_a_signature_by_another_key_under_this_keys_name_is_refused(signer: Signer) -> None:
    forged = Signer(Ed25519PrivateKey.generate()).sign(TYPE, PAYLOAD)
    forged["signatures"][0]["keyid"] = signer.key_id
    with pytest.raises(BadSignature, match="does not match the content"):
        verify(forged, [signer.public_key], TYPE)


def test_a_signature_of_one_type_does_not_count_for_another(signer: Signer) -> None:
    with pytest.raises(BadSignature, match="is expected"):
        verify(signer.sign("text/plain", PAYLOAD), [signer.public_key], TYPE)
    relabelled = signer.sign("text/plain", PAYLOAD) | {"payloadType": TYPE}
    with pytest.raises(BadSignature, match="does not match"):
        verify(relabelled, [signer.public_key], TYPE)


def test_no_bit_of_a_written_envelope_changes_unnoticed(signer: Signer) -> None:
    written = json.dumps(signer.sign(TYPE, PAYLOAD)).encode()
    for position in range(len(written)):
        for bit in range(8):
            changed = bytearray(written)
            changed[position] ^= 1 << bit
            try:
                envelope = json.loads(changed)
            except ValueError:
                continue
            if envelope == json.loads(written):
                continue  # white space between members
            with pytest.raises(BadSignature):
                verify(envelope, [signer.public_key], TYPE)


@pytest.mark.parametrize(
    "envelope",
    [
        None,
        [],
        "text",
        {},
        {"payload": "", "payloadType": "", "signatures": []},
        {"payload": "", "payloadType": "", "signatures": [{}]},
        {"payload": "", "payloadType": 1, "signatures": [{"keyid": "", "sig": ""}]},
        {"payload": 1, "payloadType": "", "signatures": [{"keyid": "", "sig": ""}]},
        {"payload": "é", "payloadType": "", "signatures": [{"keyid": "", "sig": ""}]},
        {"payload": "YQ=", "payloadType": "", "signatures": [{"keyid": "", "sig": ""}]},
        {"payload": "YR==", "payloadType": "", "signatures": [{"keyid": "", "sig": ""}]},
        {"payload": "", "payloadType": "", "signatures": [{"keyid": [], "sig": ""}]},
    ],
)
def test_what_is_no_envelope_is_told(signer: Signer, envelope: object) -> None:
    with pytest.raises(BadSignature, match="envelope"):
        verify(envelope, [signer.public_key], TYPE)


def test_a_second_signature_is_not_overlooked(signer: Signer) -> None:
    envelope = signer.sign(TYPE, PAYLOAD)
    envelope["signatures"] *= 2
    with pytest.raises(BadSignature, match="exactly one"):
        verify(envelope, [signer.public_key], TYPE)


def test_a_key_file_signs_what_its_public_half_verifies(tmp_path: Path) -> None:
    created = Signer.create(tmp_path / "key.pem")
    loaded = Signer.load(tmp_path / "key.pem")
    assert loaded.key_id == created.key_id
    public = PublicKey.from_pem(created.public_key.pem)
    assert verify(loaded.sign(TYPE, PAYLOAD), [public], TYPE) == PAYLOAD


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    Signer.create(tmp_path / "key.pem")
    with pytest.raises(FileExistsError):
        Signer.create(tmp_path / "key.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    Signer.create(path)
    path.chmod(mode)
    with pytest.raises(UnusableKey, match="chmod 600"):
        Signer.load(path)


def test_what_systemd_gives_to_one_unit_may_show_the_mask_of_an_acl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.pem"
    key = Signer.create(path)
    path.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert Signer.load(path).key_id == key.key_id
    path.chmod(0o444)
    with pytest.raises(UnusableKey, match="read by others"):
        Signer.load(path)
    path.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "another"))
    with pytest.raises(UnusableKey, match="read by others"):
        Signer.load(path)


def test_files_without_a_usable_key_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnusableKey, match="cannot be read"):
        Signer.load(tmp_path / "absent.pem")
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    with pytest.raises(UnusableKey, match="no unencrypted private key"):
        Signer.load(path)
    other = generate_private_key(SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UnusableKey, match="Ed25519"):
        Signer.load(path)
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(UnusableKey, match="Ed25519"):
        PublicKey.from_pem(public)
    with pytest.raises(UnusableKey, match="PEM"):
        PublicKey.from_pem(base64.b64encode(b"no key"))
