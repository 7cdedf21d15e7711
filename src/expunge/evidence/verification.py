"""Checks an erasure certificate link by link, with nothing but files. Never asks a service, never trusts one."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pydantic import ValidationError

from expunge.evidence import heads
from expunge.evidence.canonical import canonical
from expunge.evidence.certificate import (
    PAYLOAD_TYPE,
    Predicate,
    Statement,
    report_digest,
    subjects,
)
from expunge.evidence.chain import ROW_MEMBERS, Row
from expunge.evidence.merkle import HASH_BYTES, BadProof, check_inclusion
from expunge.evidence.signing import BadSignature, PublicKey, signed_by, unverified, verify
from expunge.evidence.succession import follow

Status = Literal["OK", "BROKEN", "NOT CHECKED"]
Found = tuple[str, Any]
"""Of a link that holds: what it is in words, and what was found by following it."""
COMPLETED = "completed"
"""The log's event of a request that was carried out."""
SHOWN = {*ROW_MEMBERS, "leaf_hash", "path", "position", "sealed"}
"""Members of a row as the service shows it to its party."""


class Broken(ValueError):
    """A link does not hold; the message says why."""


@dataclass(frozen=True, slots=True)
class Link:
    """One thing that has to hold for the certificate to prove what it says."""

    name: str
    status: Status
    message: str


@dataclass(frozen=True, slots=True)
class Given:
    """What there is beside the certificate."""

    key: PublicKey | None = None
    """The public key that whoever checks has kept: of the certificate's issuer, or one before it."""
    checkpoint_sha256: str | None = None
    """Hexadecimal, of a file that is said to be one of the certificate's checkpoints."""
    rows: bytes | None = None
    """A file of rows of the log, proven under the certificate's tree head, as `rows_file` writes them."""
    audit: Any = None
    """An audit as the service told it, with its report."""


def rows_file(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as the service shows them to their party, in the one way in which they are checked: canonical JSON."""
    return canonical(list(rows))


def verified(data: bytes, given: Given) -> list[Link]:
    """Every link of a certificate file and its state; the list ends early where nothing more can be read.

    Raises nothing for what the file or the rows hold: damage is an answer here.
    """
    links: list[Link] = []
    envelope = _held(links, "envelope", partial(_envelope, data))
    statement = envelope and _held(links, "statement", partial(_statement, envelope))
    if not envelope or not statement:
        return links
    told = statement.predicate
    if given.key is None:
        message = (
            f"signed with key {told.issuer.key_id}; whether that is the service's key, only a "
            "public key that you have from elsewhere can tell"
        )
        links.append(Link("key", "NOT CHECKED", message))
    else:
        _held(links, "key", partial(_key, told, given.key))
    _held(links, "signature", partial(_signature, envelope, told))
    _held(links, "tree head", partial(_tree_head, told))
    _held(links, "inclusion", partial(_inclusion, told))
    if given.rows is not None:
        _held(links, "log rows", partial(_rows, told, given.rows))
    if given.checkpoint_sha256 is not None:
        _held(links, "checkpoint", partial(_checkpoint, told, given.checkpoint_sha256))
    if given.audit is not None:
        _held(links, "audit", partial(_audit, told, given.audit))
    return links


def _held(links: list[Link], name: str, check: Callable[[], Found]) -> Any:
    """What the check found, if its link holds; its state is added to the links."""
    try:
        message, found = check()
    except (Broken, BadSignature, BadProof) as error:
        links.append(Link(name, "BROKEN", str(error)))
        return None
    links.append(Link(name, "OK", message))
    return found


def _envelope(data: bytes) -> Found:
    envelope = _json(data.removesuffix(b"\n"), "the file")
    key_id = signed_by(envelope)
    return f"one DSSE envelope, signed as key {key_id!r}", envelope


def _statement(envelope: Any) -> Found:
    payload = _json(unverified(envelope), "what the envelope holds")
    try:
        statement = Statement.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        place = "/".join(str(part) for part in first["loc"])
        raise Broken(f"this is no erasure certificate: {place}: {first['msg']}") from error
    told = statement.predicate
    if statement.subject != subjects(told.result):
        raise Broken("the subjects are not the files of the result that is certified")
    row = told.log.row
    if (row.get("subject_id"), row.get("event")) != (told.request_id, COMPLETED):
        raise Broken(f"the row of the log is not that of {told.request_id!r} being completed")
    count = len(told.datasets)
    forgotten = "1 data set" if count == 1 else f"{count} data sets"
    message = (
        f"{told.certificate_id} (edition {told.edition}, {told.issued_at}): {told.request_id} "
        f"made {told.model_id} forget {forgotten} by {told.method}"
    )
    return message, statement


def _key(told: Predicate, pinned: PublicKey) -> Found:
    trusted = follow(pinned, told.issuer.keys)
    if trusted[-1].id != told.issuer.key_id:
        raise Broken(f"the issuer's key {told.issuer.key_id!r} is not the last of the succession")
    steps = len(trusted) - 1
    how = "your key" if not steps else f"follows from your key by {steps} successions"
    return f"{told.issuer.key_id}: {how}", True


def _signature(envelope: Any, told: Predicate) -> Found:
    key = told.issuer.keys[-1].parsed() if told.issuer.keys else None
    if key is None or key.id != told.issuer.key_id:
        raise Broken(f"the issuer's key {told.issuer.key_id!r} is not in the certificate")
    verify(envelope, [key], PAYLOAD_TYPE)
    return "matches the content", True


def _tree_head(told: Predicate) -> Found:
    """The issuer, who signed the certificate, vouches for the keys before its own."""
    head = heads.opened(told.log.head, [known.parsed() for known in told.issuer.keys])
    return f"of {head.size} rows at {head.at}, signed", True


def _inclusion(told: Predicate) -> Found:
    try:
        head = heads.Head.parse(unverified(told.log.head))
    except ValueError as error:
        raise Broken(f"the tree head cannot be read: {error}") from error
    path = _hashes(told.log.inclusion)
    check_inclusion(_leaf(told.log.row), told.log.position, head.size, path, head.root_hash)
    return f"row {told.log.row['seq']} is leaf {told.log.position} of that log", True


def _rows(told: Predicate, data: bytes) -> Found:
    """Each against the leaf hash and the proof beside it; the certificate's own against the certificate."""
    rows = _json(data, "the file of rows")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise Broken("the rows are not a list of JSON objects, one for each row of the log")
    own = told.log.row.get("seq")
    seen = False
    for row in rows:
        leaf, seq = _leaf(row), row["seq"]
        if set(row) != SHOWN or row["sealed"] is not True:
            raise Broken(f"row {seq!r} is not as the service shows sealed rows: {sorted(SHOWN)}")
        if row["leaf_hash"] != leaf.hex():
            raise Broken(f"row {seq!r}: its content does not have the leaf hash beside it")
        if seq == own:
            seen = True
            if leaf != _leaf(told.log.row) or row["position"] != told.log.position:
                raise Broken(f"row {seq!r} is not the one that the certificate holds")
        try:
            _proven(told, row, leaf)
        except (Broken, BadProof) as error:
            raise Broken(f"row {seq!r}: its place is not proven: {error}") from error
    if not seen:
        raise Broken(f"row {own!r}, which the certificate is about, is not among them")
    return (
        f"{len(rows)} rows are as they were sealed, in that log; {own!r} is the certificate's",
        True,
    )


def _proven(told: Predicate, row: Mapping[str, Any], leaf: bytes) -> None:
    """By the proof that the service gives of rows under the certificate's head."""
    try:
        head = heads.Head.parse(unverified(told.log.head))
    except ValueError as error:
        raise Broken(f"the certificate's tree head cannot be read: {error}") from error
    if row["path"] is None:
        raise Broken(
            "there is no proof beside it, as there is where `expunge certificate` saved it"
        )
    if type(row["position"]) is not int:
        raise Broken(f"{row['position']!r} is no position")
    check_inclusion(leaf, row["position"], head.size, _hashes(row["path"]), head.root_hash)


def _hashes(proof: Any) -> list[bytes]:
    """The hashes of a proof, each in the one way in which the service writes it."""
    try:
        path = [bytes.fromhex(each) for each in proof]
    except (TypeError, ValueError) as error:
        raise Broken(f"the proof cannot be read: {error}") from error
    if any(len(each) != HASH_BYTES for each in path):
        raise Broken(f"a hash of the proof is not {HASH_BYTES} bytes long")
    if [each.hex() for each in path] != list(proof):
        raise Broken("a hash of the proof is not written as the service writes it")
    return path


def _checkpoint(told: Predicate, sha256: str) -> Found:
    names = {
        told.base.digest: "the complete base, before",
        told.base.release_digest: "the released base, before",
        told.result.digest: "the complete result, after",
        told.result.release_digest: "the released result, after",
    }
    name = names.get(f"sha256:{sha256}")
    if name is None:
        raise Broken(f"the file (SHA-256 {sha256}) is none of the certificate's checkpoints")
    return f"the file is {name}", True


def _audit(told: Predicate, given: Any) -> Found:
    """By the digest of the whole report: who has it holds every number of it."""
    if told.audit is None:
        raise Broken("the certificate relies on no audit")
    held = given if isinstance(given, Mapping) else {}
    audit_id, report = held.get("id"), held.get("report")
    if not isinstance(report, Mapping):
        raise Broken("this is no audit with a report")
    if audit_id != told.audit.id:
        raise Broken(f"this is audit {audit_id!r}; the certificate relies on {told.audit.id!r}")
    try:
        digest = report_digest(report)
    except (ValueError, RecursionError) as error:
        raise Broken(f"the report has no digest: {error}") from error
    if digest != told.audit.report_sha256:
        raise Broken(f"the report (SHA-256 {digest}) is not the one that the certificate names")
    return f"the whole report of {audit_id}: {told.audit.sentence}", True


def _leaf(row: Mapping[str, Any]) -> bytes:
    try:
        return Row(**{name: row[name] for name in ROW_MEMBERS}).leaf()
    except (KeyError, ValueError, RecursionError) as error:
        raise Broken(f"row {row.get('seq')!r} of the log is not complete: {error}") from error


def _json(data: bytes, what: str) -> Any:
    """JSON in the one way in which the service writes it: no byte of it can change unnoticed."""
    try:
        value = json.loads(data)
        if canonical(value) != data:
            raise Broken(f"{what} is not written as the service writes it (RFC 8785)")
    except (ValueError, RecursionError) as error:
        if isinstance(error, Broken):
            raise
        raise Broken(f"{what} is not JSON: {error}") from error
    return value
