"""A complete certificate without a service, and what it is about: for tests that damage it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save
from tests.evidence.test_succession import AT, known

from expunge.evidence import heads
from expunge.evidence.canonical import canonical
from expunge.evidence.certificate import (
    PAYLOAD_TYPE,
    Audit,
    Checkpoint,
    Dataset,
    Exposure,
    Issuer,
    LogPosition,
    Metrics,
    Predicate,
    Residue,
    Run,
    Score,
    Utility,
    report_digest,
    statement,
)
from expunge.evidence.chain import GENESIS, ROW_MEMBERS, Row
from expunge.evidence.merkle import Frontier, Node, inclusion_cover, proof
from expunge.evidence.signing import Signer

REPORT = {"seed": 2**60, "n_own": 8}
"""Of the audit that the certificate relies on."""
WEIGHTS = {
    name: save({"weight": np.full((2, 2), number, np.float32)}, {"of": name})
    for number, name in enumerate(("base", "result"))
}
"""Checkpoint files in small: eight bytes of length, a JSON header, tensors."""


def new_signer() -> Signer:
    return Signer(Ed25519PrivateKey.generate())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rows(number: int = 5) -> list[Row]:
    """A short log; the third row is that of the request's completion."""
    return [
        Row(
            seq=seq,
            at=f"2026-05-04T12:00:0{seq}.000000Z",
            actor="service",
            subject_id="req_1",
            event="completed" if seq == 3 else f"event-{seq}",
            detail={"number": seq, "words": "ä"},
            salt=f"00000000-0000-4000-8000-00000000000{seq}",
        )
        for seq in range(1, number + 1)
    ]


def shown(log: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as the service shows them to their party, with their proofs."""
    hashes, _ = tree(log)
    return [
        {name: getattr(row, name) for name in ROW_MEMBERS}
        | {"sealed": True, "position": position, "leaf_hash": row.leaf().hex()}
        | {"path": path(hashes, position, len(log))}
        for position, row in enumerate(log)
    ]


def tree(log: Sequence[Row]) -> tuple[dict[Node, bytes], bytes]:
    """The hashes of all complete subtrees, and the root."""
    frontier, hashes = Frontier(0, []), {}
    for place, row in enumerate(log):
        hashes[Node(0, place)] = row.leaf()
        hashes |= dict(frontier.append(row.leaf()))
    return hashes, frontier.root


def path(hashes: dict[Node, bytes], position: int, size: int) -> list[str]:
    return [each.hex() for each in proof(inclusion_cover(position, size), hashes.__getitem__)]


def position(log: Sequence[Row], index: int, signer: Signer) -> LogPosition:
    """Where a row is in this log, proven against a head that the signer signed."""
    hashes, root = tree(log)
    head = heads.Head(len(log), root, GENESIS, "2026-05-04T12:00:09.000000Z")
    return LogPosition(
        row={name: getattr(log[index], name) for name in ROW_MEMBERS},
        position=index,
        inclusion=path(hashes, index, len(log)),
        head=signer.sign(heads.PAYLOAD_TYPE, head.payload()),
    )


@dataclass(frozen=True)
class Paper:
    """A certificate and who can vouch for it."""

    chain: list[Signer]
    predicate: Predicate

    def file(self, **changes: Any) -> bytes:
        """As the service hands it out; with changes of the predicate, signed all the same."""
        told = self.predicate.model_copy(update=changes)
        payload = canonical(statement(told).model_dump(mode="json", by_alias=True))
        return canonical(self.chain[-1].sign(PAYLOAD_TYPE, payload))


def paper(chain: list[Signer] | None = None, head_signer: Signer | None = None) -> Paper:
    """A certificate signed by the last key of the chain."""
    signers = chain or [new_signer()]
    return Paper(
        signers,
        Predicate(
            certificate_id="crt_1",
            edition=1,
            issued_at=AT.isoformat(),
            request_id="req_1",
            owner_id="pty_1",
            model_id="mdl_1",
            datasets=[Dataset(id="dst_1", digest="sha256:aa", samples=8)],
            method="alignment_calibration",
            params={"epochs": 10, "lr": 0.006},
            seed="0",
            base=_checkpoint("base"),
            result=_checkpoint("result"),
            metrics=Metrics(seconds=12.5, utility=Utility(before=0.5, after=0.49)),
            exposure=Exposure(
                requested_at=AT.isoformat(), completed_at=AT.isoformat(), effective_at=None
            ),
            residue=[
                Residue(
                    what="checkpoint",
                    where="object store",
                    state="kept",
                    why="audits need it",
                    id="ckp_base",
                    digest="sha256:00",
                    count=1,
                    until=AT.isoformat(),
                    condition=None,
                )
            ],
            audit=Audit(
                id="aud_1",
                kind="protocol",
                created_at=AT.isoformat(),
                verdict="forgotten",
                sentence="Your samples were forgotten.",
                samples=8,
                p=0.001,
                alpha=0.01,
                forgetting_score={"encoder": Score(mean=0.02, interval=[0.01, 0.03])},
                report_sha256=report_digest(REPORT),
            ),
            run=Run(job_id="job_1", manifest_sha256="00"),
            log=position(rows(), 2, head_signer or signers[-1]),
            issuer=Issuer(key_id=signers[-1].key_id, keys=known(signers)),
        ),
    )


def _checkpoint(name: str) -> Checkpoint:
    return Checkpoint(
        id=f"ckp_{name}",
        digest=f"sha256:{sha256(WEIGHTS[name])}",
        release_digest=f"sha256:{sha256(WEIGHTS[name] + b' released')}",
    )
