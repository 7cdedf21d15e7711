"""Tree heads: what the log was at one size, as a statement that can be signed. Never says whose key to trust."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from expunge.evidence.canonical import canonical
from expunge.evidence.merkle import HASH_BYTES
from expunge.evidence.signing import BadSignature, PublicKey, verify

PAYLOAD_TYPE = "application/vnd.expunge.tree-head.v1+json"


@dataclass(frozen=True, slots=True)
class Head:
    """The log of `size` leaves. Hashes are 32 bytes."""

    size: int
    root_hash: bytes
    chain_hash: bytes
    at: str
    """When it was made, as a row of the log writes it."""

    def payload(self) -> bytes:
        """What is signed: canonical JSON."""
        return canonical(
            {
                "at": self.at,
                "chain_hash": self.chain_hash.hex(),
                "root_hash": self.root_hash.hex(),
                "size": self.size,
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> "Head":
        """The head that a payload states.

        Raises:
            ValueError: it is no such statement, or not written in the one way.
        """
        try:
            members: Any = json.loads(payload)
            head = cls(
                size=members["size"],
                root_hash=bytes.fromhex(members["root_hash"]),
                chain_hash=bytes.fromhex(members["chain_hash"]),
                at=members["at"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("this is no tree head") from error
        hashes_fit = {len(head.root_hash), len(head.chain_hash)} == {HASH_BYTES}
        if type(head.size) is not int or not hashes_fit or head.payload() != payload:
            raise ValueError("this is no tree head as the service writes it")
        return head


def opened(envelope: Any, keys: Iterable[PublicKey]) -> Head:
    """The head in a signed envelope.

    Raises:
        BadSignature: it was changed, is by another key, or holds something else.
    """
    payload = verify(envelope, keys, PAYLOAD_TYPE)
    try:
        return Head.parse(payload)
    except ValueError as error:
        raise BadSignature(str(error)) from error
