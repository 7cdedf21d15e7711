"""The erasure certificate: what a signed statement about a removal says. Never checks one, never signs one."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.evidence.canonical import LARGEST_EXACT, canonical
from expunge.evidence.succession import KnownKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://expunge.dev/erasure-certificate/v1"
RELEASE = "/release"
"""After a checkpoint's id: the part of it that may leave the service."""


class Part(BaseModel):
    """Base: members that a later edition adds are signed, and read by whoever knows them."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, strict=True)


class Subject(Part):
    """A file that the statement is about, by its digest (in-toto)."""

    name: str
    digest: dict[str, str]


class Dataset(Part):
    """What was forgotten; `digest` is SHA-256 over the index of all samples."""

    id: str
    digest: str
    samples: int


class Checkpoint(Part):
    """Weights by the SHA-256 of their files: complete, and the part that may leave the service."""

    id: str
    digest: str
    release_digest: str


class Utility(Part):
    """Contrastive accuracy on retained samples, in [0, 1]."""

    before: float | None
    after: float


class Metrics(Part):
    """What was measured of the whole removal, as far as it tells nothing of other owners."""

    seconds: float
    utility: Utility | None


class Exposure(Part):
    """When the removal was asked for, done, and in force. ISO 8601, UTC."""

    requested_at: str
    completed_at: str
    effective_at: str | None
    """When a head without the data was first in force; none: not when this was written."""


class Score(Part):
    """Mean forgetting score over the owner's samples and its bootstrap interval, at one level."""

    mean: float
    interval: list[float] | None


class Audit(Part):
    """The audit that this certificate relies on."""

    id: str
    kind: Literal["protocol", "asked"]
    """Made by the service by the protocol that was fixed with the request, or asked for by its owner."""
    created_at: str
    verdict: str
    sentence: str
    samples: int
    p: float | None
    """Of the hypothesis that the model was not made to forget these samples; none without a test."""
    alpha: float | None
    forgetting_score: dict[str, Score]
    """By level: encoder, projector."""
    report_sha256: str
    """Of the whole report, see `report_digest`."""

    @classmethod
    def of(
        cls,
        report: Mapping[str, Any],
        *,
        audit_id: str,
        kind: Literal["protocol", "asked"],
        created_at: str,
    ) -> Self:
        """What a certificate says of an audit's report; nothing of single samples."""
        test = report.get("test") or {}
        scores = {level: found["forgetting_score"] for level, found in report["levels"].items()}
        return cls(
            id=audit_id,
            kind=kind,
            created_at=created_at,
            verdict=report["verdict"]["code"],
            sentence=report["verdict"]["sentence"],
            samples=report["n_own"],
            p=test.get("p"),
            alpha=test.get("alpha"),
            forgetting_score={
                level: Score(mean=score["mean"], interval=score["interval"])
                for level, score in scores.items()
            },
            report_sha256=report_digest(report),
        )


class Residue(Part):
    """One thing that still held something of the data when this was written, or several alike."""

    what: str
    where: str
    state: str
    why: str
    id: str | None
    digest: str | None
    count: int
    until: str | None
    condition: str | None


class LogPosition(Part):
    """The log's row of the completion, complete, and the proof that it is in the log of a signed head."""

    row: dict[str, Any]
    position: int
    inclusion: list[str]
    """Hashes from the leaf to the root, hexadecimal (RFC 9162)."""
    head: dict[str, Any]
    """DSSE envelope of the tree head."""


class Run(Part):
    """SHA-256 of the canonical run manifest, by which the model's owner lets a third party replay the run."""

    job_id: str
    manifest_sha256: str


class Issuer(Part):
    """Who signs, and how that key follows from those before it, the first one first."""

    key_id: str
    keys: list[KnownKey]


VOLATILE = ("certificate_id", "edition", "issued_at", "log", "issuer")
"""Members of a predicate that differ from edition to edition though nothing has happened."""


class Predicate(Part):
    """What was done."""

    certificate_id: str
    edition: int
    issued_at: str
    request_id: str
    owner_id: str
    model_id: str
    datasets: list[Dataset]
    method: str
    params: dict[str, Any]
    seed: str
    """Decimal: readers of JSON round large numbers."""
    base: Checkpoint
    result: Checkpoint
    metrics: Metrics
    exposure: Exposure
    residue: list[Residue]
    audit: Audit | None
    run: Run | None
    log: LogPosition
    issuer: Issuer


class Statement(Part):
    """An in-toto statement (v1) whose subjects are the result's files."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Subject]
    predicate_type: Literal["https://expunge.dev/erasure-certificate/v1"] = Field(
        alias="predicateType"
    )
    predicate: Predicate


def report_digest(report: Mapping[str, Any]) -> str:
    """SHA-256 of an audit's report as canonical JSON, hexadecimal; numbers above 2^53 - 1 as decimal text."""
    return hashlib.sha256(canonical(_exact(report))).hexdigest()


def _exact(value: Any) -> Any:
    """Seeds may be larger than every reader of JSON can hold."""
    match value:
        case int() if abs(value) > LARGEST_EXACT:
            return str(value)
        case Mapping():
            return {name: _exact(member) for name, member in value.items()}
        case list():
            return [_exact(member) for member in value]
        case _:
            return value


def statement(predicate: Predicate) -> Statement:
    """The statement about the predicate's result."""
    return Statement(
        type=STATEMENT_TYPE,
        subject=subjects(predicate.result),
        predicate_type=PREDICATE_TYPE,
        predicate=predicate,
    )


def subjects(result: Checkpoint) -> list[Subject]:
    """A checkpoint's files as in-toto names them."""
    return [
        Subject(name=name, digest={"sha256": digest.removeprefix("sha256:")})
        for name, digest in (
            (result.id, result.digest),
            (result.id + RELEASE, result.release_digest),
        )
    ]
