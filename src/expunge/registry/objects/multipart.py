"""A file of any size to a bucket, part by part; a part that fails is sent again. Leaves no parts behind."""

import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from minio.error import S3Error

from expunge.registry.objects.s3_client import S3Client, reaching
from expunge.registry.objects.store import StoreUnavailable

MEBIBYTE = 2**20
PART_BYTES = 16 * MEBIBYTE
"""Of a part, one of which is in memory at a time, unless the file has more than MAX_PARTS of them."""
MAX_PARTS = 10_000
"""The protocol's limit: files of up to 156 GiB have parts of PART_BYTES, of 5 TiB ones of 525 MiB."""
PART_TRIES = 5
"""Of a part, once the server has taken one: before that, failing soon is of more use."""
PAUSE_SECONDS = 0.5
"""Before a part's second try, at most; doubles with every further one."""

Answer = TypeVar("Answer")


def part_bytes(size: int) -> int:
    """Bytes in each part but the last of a file of so many bytes."""
    return max(PART_BYTES, math.ceil(size / MAX_PARTS / MEBIBYTE) * MEBIBYTE)


def send_file(
    client: S3Client,
    key: str,
    path: Path,
    headers: Mapping[str, str],
    *,
    pause_seconds: float,
    finisher: S3Client,
) -> None:
    """Store the file's bytes as one object; `finisher` waits longer, while parts are put together.

    Raises:
        StoreUnavailable: nothing is stored.
    """
    size = path.stat().st_size
    step = part_bytes(size)
    with path.open("rb") as file:
        if size <= step:
            with reaching():
                client.send(key, file.read(), headers)
            return
        with reaching():
            upload_id = client.begin(key, headers)
        try:
            parts = []
            for number in range(1, math.ceil(size / step) + 1):
                send = partial(client.send_part, key, upload_id, number, file.read(step))
                tries = 1 if number == 1 else PART_TRIES
                parts.append(again(send, tries, pause_seconds))
            with reaching():
                finisher.complete(key, upload_id, parts, size)
        except BaseException:
            # What cannot be aborted now, `S3Store.clean` or the bucket's lifecycle rule ends.
            with suppress(StoreUnavailable, S3Error), reaching():
                client.abort(key, upload_id)
            raise


def again(call: Callable[[], Answer], tries: int, pause_seconds: float) -> Answer:
    """What the call answers, at the latest when it is made so many times; pauses in between have full jitter.

    Raises:
        StoreUnavailable: it never answered.
    """
    for failures in range(1, tries):
        try:
            with reaching():
                return call()
        except StoreUnavailable:
            pause(failures, pause_seconds)
    with reaching():
        return call()


def pause(failures: int, seconds: float) -> None:
    """Wait a random time of up to `seconds`, doubled with every failure after the first."""
    time.sleep(random.uniform(0, seconds * 2 ** (failures - 1)))  # noqa: S311 - not a secret
