"""Signed statements: Ed25519 keys and DSSE envelopes. Never decides which key is to be trusted."""

import base64
import binascii
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

OTHERS = stat.S_IRWXG | stat.S_IRWXO
CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Names the folder of what systemd gives to one unit alone; where it does so by an ACL, `stat` shows the mask of that
as bits of the group, which cannot read."""
ENVELOPE_MEMBERS = {"payload", "payloadType", "signatures"}
SIGNATURE_MEMBERS = {"keyid", "sig"}


class BadSignature(ValueError):
    """An envelope does not prove what it should; the message says what broke."""


class UnusableKey(ValueError):
    """A key file cannot be used; the message says why."""


@dataclass(frozen=True)
class PublicKey:
    """What checks signatures; `pem` is its SubjectPublicKeyInfo, as this class writes it."""

    pem: str

    @classmethod
    def of(cls, key: Ed25519PublicKey) -> Self:
        """The key in the form in which it is stored and shown."""
        return cls(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())

    @classmethod
    def from_pem(cls, pem: str | bytes) -> Self:
        """A key as somebody hands it over.

        Raises:
            UnusableKey: this is no Ed25519 public key in PEM.
        """
        try:
            key = load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UnusableKey("this is no public key in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UnusableKey("this public key is not an Ed25519 key")
        return cls.of(key)

    @property
    def id(self) -> str:
        """SHA-256 of the DER-encoded SubjectPublicKeyInfo, in hexadecimal."""
        der = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    def matches(self, signature: bytes, message: bytes) -> bool:
        """Whether this key's holder signed the message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @property
    def _key(self) -> Ed25519PublicKey:
        return cast("Ed25519PublicKey", load_pem_public_key(self.pem.encode()))


class Signer:
    """Holds a private key and signs with it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = PublicKey.of(key.public_key())
        self.key_id = self.public_key.id

    @classmethod
    def create(cls, path: Path) -> Self:
        """Write a new private key (PKCS #8, PEM) that its owner alone can read.

        Raises:
            FileExistsError: there is a file already; a key is never overwritten.
        """
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        # Complete before it has its name; a file of mkstemp is its owner's alone.
        number, part = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.link(part, path)
        finally:
            Path(part).unlink()
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The key of a file that `create` wrote.

        Raises:
            UnusableKey: it cannot be read, others may read it, or it holds no Ed25519 key.
        """
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                pem = file.read()
        except OSError as error:
            raise UnusableKey(f"signing key {path} cannot be read: {error.strerror}") from error
        if mode & (OTHERS & ~stat.S_IRGRP if _is_credential(path) else OTHERS):
            raise UnusableKey(
                f"signing key {path} can be read by others (mode {stat.S_IMODE(mode):04o}); "
                f"run: chmod 600 {path}"
            )
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UnusableKey(f"{path} holds no unencrypted private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UnusableKey(f"{path} holds a private key, but not an Ed25519 key")
        return cls(key)

    def sign(self, payload_type: str, payload: bytes) -> dict[str, Any]:
        """A DSSE v1 envelope around the payload, in the JSON form of its specification."""
        signature = self._key.sign(pre_authentication_encoding(payload_type, payload))
        return {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": self.key_id, "sig": base64.b64encode(signature).decode()}],
        }


def _is_credential(path: Path) -> bool:
    folder = os.environ.get(CREDENTIALS)
    return folder is not None and path.parent == Path(folder)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE v1 signature signs: `PAE(type, body)` of its protocol document."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def signed_by(envelope: Any) -> str:
    """The id of the key that an envelope says it was signed with; proves nothing.

    Raises:
        BadSignature: this is no envelope with one signature.
    """
    return _parts(envelope)[2]


def unverified(envelope: Any) -> bytes:
    """The payload of an envelope whose signature is checked elsewhere.

    Raises:
        BadSignature: this is no envelope with one signature.
    """
    return _parts(envelope)[1]


def verify(envelope: Any, keys: Iterable[PublicKey], payload_type: str) -> bytes:
    """The payload of a DSSE envelope, if one of the keys signed it as this type.

    Stricter than DSSE asks: one signature, no further members, one way to write each value, so that
    no byte of an envelope can change unnoticed.

    Raises:
        BadSignature: it is none, of another type, by another key, or it was changed.
    """
    kind, payload, key_id, signature = _parts(envelope)
    if kind != payload_type:
        raise BadSignature(f"the envelope holds {kind!r} where {payload_type!r} is expected")
    key = next((each for each in keys if each.id == key_id), None)
    if key is None:
        raise BadSignature(
            f"it is signed with key {key_id!r}, which is not one to be accepted here"
        )
    if not key.matches(signature, pre_authentication_encoding(kind, payload)):
        raise BadSignature(f"the signature of key {key_id} does not match the content")
    return payload


def _parts(envelope: Any) -> tuple[str, bytes, str, bytes]:
    """Payload type, payload, key id and signature."""
    if not isinstance(envelope, dict) or set(envelope) != ENVELOPE_MEMBERS:
        raise BadSignature("this is no DSSE envelope: payload, payloadType and signatures")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise BadSignature("the envelope does not carry exactly one signature")
    (signature,) = signatures
    if not isinstance(signature, dict) or set(signature) != SIGNATURE_MEMBERS:
        raise BadSignature("the envelope's signature does not consist of keyid and sig")
    kind, key_id = envelope["payloadType"], signature["keyid"]
    if not isinstance(kind, str) or not isinstance(key_id, str):
        raise BadSignature("payloadType and keyid of the envelope are not text")
    return kind, _decoded(envelope["payload"], "payload"), key_id, _decoded(signature["sig"], "sig")


def _decoded(value: Any, name: str) -> bytes:
    try:
        decoded = base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadSignature(f"the envelope's {name} is not base64") from error
    if base64.b64encode(decoded).decode() != value:
        raise BadSignature(f"the envelope's {name} is not written as base64 writes it")
    return decoded
