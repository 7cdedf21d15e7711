"""Identifiers: a prefix that says what a row is, and a time-ordered UUID (version 7)."""

from enum import StrEnum

import uuid_utils


class Prefix(StrEnum):
    """The prefix of every identifier, by kind of row."""

    PARTY = "pty"
    KEY = "key"
    DATASET = "dst"
    MODEL = "mdl"
    CHECKPOINT = "ckp"
    REQUEST = "req"
    JOB = "job"
    AUDIT = "aud"
    COMPARISON = "cmp"
    CERTIFICATE = "crt"
    DELEGATION = "dlg"
    ENCODING = "enc"
    ALERT = "alr"
    UPLOAD = "upl"


def new_id(prefix: Prefix) -> str:
    """A fresh identifier such as `req_0198…`: prefix, underscore, 32 hexadecimal digits."""
    return f"{prefix}_{uuid_utils.uuid7().hex}"
