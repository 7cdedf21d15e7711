"""Checkpoints too large for one call: in parts, to the object store or through the service; only what lacks is sent."""

import hashlib
import math
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from expunge.client import resources as r
from expunge.client.calls import create
from expunge.client.problems import DoubtError, ProblemError, UnreachableError
from expunge.client.transport import Body, Transport

IN_PARTS_FROM_BYTES = 64 * 2**20
"""Smaller files are sooner there in one call."""
PART_BYTES = 32 * 2**20
MAX_PARTS = 10_000
"""Of one file: parts of larger files are larger."""
READ_BYTES = 2**20
ROUNDS = 3
"""Of sending what lacks and completing: what arrived damaged is sent again."""
STORED_BYTES_PER_SECOND = 10 * 2**20
"""A service that reads, checks and stores what was sent is waited for accordingly."""


class DirectPart(r.Resource):
    """How to send a part to the object store: a PUT to `url` with all `headers`."""

    url: str
    headers: dict[str, str]


class MissingPart(r.Resource):
    """A part that the service lacks: a PUT to `path`, or as `direct` says."""

    sha256: str
    bytes: int
    path: str
    direct: DirectPart | None = None


class Parts(r.Resource):
    """What to send next of a file; nothing once all has arrived."""

    missing: list[MissingPart]


def part_bytes(size: int) -> int:
    """Bytes of each part but the last, of a file of so many bytes."""
    return max(PART_BYTES, math.ceil(size / MAX_PARTS / READ_BYTES) * READ_BYTES)


def send_in_parts(
    transport: Transport,
    model_id: str,
    path: Path,
    dataset_ids: Sequence[str],
    *,
    wait: bool,
    idempotency_key: str | None,
    direct: bool | None,
) -> r.Checkpoint:
    """Send what the service lacks of the file, then have it made a checkpoint.

    After any error the same call goes on: parts that have arrived stay for a while.

    Raises:
        ProblemError: the service refused; with `direct`, or the object store.
        UnreachableError: no answer came from it.
        DoubtError: what was sent did not arrive.
    """
    place = f"/models/{model_id}/checkpoints"
    size = path.stat().st_size
    step = part_bytes(size)
    whole, parts = _digests(path, step)
    file = {"bytes": size, "sha256": whole, "part_bytes": step, "parts": parts}
    key = idempotency_key or str(uuid.uuid4())
    for left in reversed(range(ROUNDS)):
        _send_missing(transport, place, path, file, direct=direct)
        try:
            answer = create(
                transport,
                f"{place}/complete",
                Body(json={**file, "dataset_ids": list(dataset_ids)}),
                key,
                wait=wait,
                seconds=size / STORED_BYTES_PER_SECOND,
            )
            return r.Checkpoint.model_validate(answer)
        except ProblemError as error:
            # Parts that a break left halves of in a store that keeps such: they are removed by now.
            if not error.extensions.get("parts") or left == 0:
                raise
    raise AssertionError("the last round ends or raises")


def _send_missing(
    transport: Transport, place: str, path: Path, file: dict[str, Any], *, direct: bool | None
) -> None:
    starts = {part: number * file["part_bytes"] for number, part in enumerate(file["parts"])}
    sent: set[str] = set()
    while missing := _missing(transport, place, file):
        for part in missing:
            if part.sha256 in sent:
                raise DoubtError(f"Part {part.sha256} of {path} was sent, but did not arrive.")
            body = Body(file=path, start=starts[part.sha256], size=part.bytes)
            if part.direct is None or not _went_directly(transport, part.direct, body, direct):
                transport.send("PUT", part.path, body, repeatable=True)
                direct = False
            sent.add(part.sha256)


def _went_directly(transport: Transport, way: DirectPart, body: Body, direct: bool | None) -> bool:
    """Whether the part was sent to the store; only with `direct` is it an error that it was not."""
    if direct is False:
        return False
    try:
        transport.send_elsewhere(way.url, body, way.headers)
    except (UnreachableError, ProblemError):
        if direct:
            raise
        return False
    return True


def _missing(transport: Transport, place: str, file: dict[str, Any]) -> list[MissingPart]:
    answer = transport.send("POST", f"{place}/parts", Body(json=file), repeatable=True)
    return Parts.model_validate(answer.json()).missing


def _digests(path: Path, step: int) -> tuple[str, list[str]]:
    """SHA-256 of the file and of each part, read once; both are computed at the same time."""
    whole, parts = hashlib.sha256(), []
    with path.open("rb") as file, ThreadPoolExecutor(1) as beside:
        while data := file.read(READ_BYTES):
            part, left = hashlib.sha256(), step
            while data:
                hashed = beside.submit(whole.update, data)
                part.update(data)
                hashed.result()
                left -= len(data)
                data = file.read(min(READ_BYTES, left))
            parts.append(part.hexdigest())
    return whole.hexdigest(), parts
