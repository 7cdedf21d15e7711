"""Erasure certificates as they are handed out."""

from pydantic import BaseModel, Field

from expunge.evidence.certificate import PAYLOAD_TYPE


class Signature(BaseModel):
    """By the key of this id, over DSSE's pre-authentication encoding."""

    keyid: str
    sig: str = Field(description="Base64.")


class Certificate(BaseModel):
    """A DSSE envelope around an in-toto statement, as RFC 8785 writes it: keep the bytes as they are."""

    payload: str = Field(description="Base64 of the statement's canonical JSON.")
    payloadType: str = Field(examples=[PAYLOAD_TYPE])  # noqa: N815 - DSSE's name
    signatures: list[Signature] = Field(min_length=1, max_length=1)
