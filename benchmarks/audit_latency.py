"""How long an owner waits for an audit, idle and while a job trains on the same cores, beside a bare route.

    python benchmarks/audit_latency.py --name NAME [--calls 40]

Of samples that the service's own audit of the request was about, as of most requests it is about all,
and of others, which no audit was about yet. Also what 5,000 samples cost: seconds, and the interactive
worker's memory before, at most and after.
"""

import argparse
import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from expunge.client import Client
from expunge.embedded.stack import Stack
from expunge.evidence.protocol import MAX_SAMPLES
from expunge.formats.shards import make_sample, write_shard
from http_load import Call, bare_server, send
from record import RESULTS, conditions

PORT, BARE_PORT = 8395, 8396
AIM_MS = 300
SIZES = (1, 8, 64)
MANY, REVIEWED = 5_000, MAX_SAMPLES
OWN_SEED = 1
RETAINED, OTHERS, CONTROL = 1_000, 64, 600
IMAGE_SIDE = 32
CALM_LOOKS = 5
MEGA = 1e6
SAMPLING_SECONDS = 0.02
REVIEW_SECONDS = 600
"""The service audits a request by itself once it is completed; asked audits are measured after that."""
ENCODER = {
    "objective": {"framework": "simclr"},
    "architecture": {"name": "resnet18_cifar", "width": 16},
    "image_size": IMAGE_SIDE,
}
SHORT = {"epochs": 1, "batch_size": 128}
UNLIMITED = {
    "EXPUNGE_AUDIT_BUDGET_PER_DAY": "1000000",
    "EXPUNGE_AUDIT_SAMPLE_VIEWS_PER_DAY": "1000000000",
}


def main() -> None:
    """Measure and write the page."""
    args = _arguments()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="expunge-audits-") as folder:
        work = Path(folder)
        with (
            Stack(work / "state", PORT, extra=UNLIMITED) as stack,
            bare_server(work, BARE_PORT),
            _told(stack, work) as story,
        ):
            story.seconds(8)
            cold = story.seconds(8, OWN_SEED)
            latency = story.measured("nothing trains", args.calls)
            many = story.many(stack)
            with story.training():
                latency |= story.measured("while a job trains", args.calls)
                trained = story.still_training()
    facts = conditions(torch.device("cpu"), load_before)
    result = {**facts, "trained_throughout": trained, "cold_seconds": cold, "latency": latency}
    result["many"] = many
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


@dataclass
class Story:
    """Completed requests over few and many samples, and another model's data to train on meanwhile."""

    owner: Client
    secret: str
    reviewed: str
    """Its samples are all in the service's own audit of it."""
    request: str
    """Its samples hardly are."""
    model: str
    other: str
    job: str = ""
    draws: int = 0

    def _call(self, request: str, samples: int, seed: int | None = None) -> Call:
        """An audit of samples that no earlier call has drawn together."""
        self.draws += 1
        draw = {"samples": samples, "seed": self.draws}
        body = {"request_id": request, "draw": draw} | ({} if seed is None else {"seed": seed})
        headers = {
            "authorization": f"Bearer {self.secret}",
            "content-type": "application/json",
            "prefer": "wait=60",
        }
        return Call.of("POST", "/audit", headers, json.dumps(body).encode())

    def seconds(self, samples: int, seed: int | None = None) -> float:
        """Of one audit."""
        answers = send(PORT, [self._call(self.request, samples, seed)], connections=1)
        if answers.statuses != [200]:
            raise RuntimeError(f"the audit was answered with {answers.statuses}")
        return round(answers.seconds[0], 2)

    def measured(self, moment: str, calls: int) -> dict[str, dict[str, Any]]:
        """Latencies of audits one after the other, each of other samples."""
        bare = [Call.of("GET", "/bare", {})] * calls
        wanted = {f"bare route, {moment}": (BARE_PORT, bare)}
        for request, known in ((self.reviewed, "reviewed"), (self.request, "never audited")):
            for samples in SIZES:
                name = f"{samples} {known}, {moment}"
                wanted[name] = PORT, [self._call(request, samples) for _ in range(calls)]
        found = {}
        for name, (port, asked) in wanted.items():
            with _stolen() as stolen:
                found[name] = send(port, asked, connections=1).summary()
            found[name]["stolen_percent"] = stolen[0]
            print(name, found[name], flush=True)
        return found

    def many(self, stack: Stack) -> dict[str, float]:
        """All samples in one audit, twice, and the worker's memory."""
        process = psutil.Process(stack.processes["interactive"].pid)
        before = process.memory_info().rss
        with _peak(process) as peak:
            first = self._of_all()
            after_first = process.memory_info().rss
            second = self._of_all()
        return {
            "samples": MANY,
            "first_seconds": first,
            "second_seconds": second,
            "mb_before": round(before / MEGA),
            "mb_after_first": round(after_first / MEGA),
            "mb_after_second": round(process.memory_info().rss / MEGA),
            "mb_peak": round(max(peak) / MEGA),
        }

    def _of_all(self) -> float:
        """Seconds of an audit of all samples; too long for one call to wait for."""
        started = time.perf_counter()
        found = self.owner.audit(self.request, seed=OWN_SEED)
        if found.state != "succeeded":
            raise RuntimeError(f"the audit {found.state}: {found.reason}")
        return round(time.perf_counter() - started, 2)

    @contextmanager
    def training(self) -> Iterator[None]:
        """A removal of a small data set that trains until the block ends."""
        endless = {"epochs": 10_000, "batch_size": 128}
        self.owner.create_request(self.model, [self.other], params=endless)
        self.job = next(
            each.id for each in self.owner.jobs() if each.state in ("queued", "running")
        )
        while self.owner.job(self.job).progress is None:
            time.sleep(0.2)
        try:
            yield
        finally:
            self.owner.cancel_job(self.job)

    def still_training(self) -> bool:
        """Whether that removal runs."""
        return self.owner.job(self.job).state == "running"


@contextmanager
def _peak(process: psutil.Process) -> Iterator[list[int]]:
    """Resident bytes of a process, again and again while the block runs."""
    found = [process.memory_info().rss]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLING_SECONDS):
            found.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@contextmanager
def _told(stack: Stack, folder: Path) -> Iterator[Story]:
    with Client(stack.url, stack.operator.secret) as operator:
        # Of one party, who sees the job too; the retained images are another's, as an audit needs.
        party = operator.create_party("model owner", "model_owner")
        secret = str(operator.create_key(party.id).secret)
        friend = operator.create_party("friend", "data_owner")
        friends_secret = str(operator.create_key(friend.id).secret)
    with Client(stack.url, friends_secret) as owner:
        retained = _dataset(owner, folder, "retained", RETAINED)
        owner.grant(retained, party.id)
    with Client(stack.url, secret) as owner:
        many = _dataset(owner, folder, "many", MANY)
        few = _dataset(owner, folder, "few", REVIEWED)
        other = _dataset(owner, folder, "other", OTHERS)
        control = _dataset(owner, folder, "control", CONTROL)
        model = owner.create_model("encoder", ENCODER, control_dataset_id=control)
        owner.pretrain(model.id, [retained, many, few, other], SHORT)
        while owner.model(model.id).head_checkpoint_id is None:
            time.sleep(0.2)
        requests = []
        for each in (many, few):
            request = owner.create_request(model.id, [each], params=SHORT)
            while owner.request(request.id).state not in ("completed", "failed"):
                time.sleep(0.2)
            with Client(stack.url, stack.operator.secret) as operator:
                _until_at_rest(operator)
            requests.append(request.id)
        yield Story(owner, secret, requests[1], requests[0], model.id, other)


@contextmanager
def _stolen() -> Iterator[list[float]]:
    """Percent of the cores' time that the host of this virtual machine gave to others while the block ran."""
    found: list[float] = []
    before = psutil.cpu_times()
    yield found
    after = psutil.cpu_times()
    spent = [late - early for early, late in zip(before, after, strict=True)]
    stolen = spent[before._fields.index("steal")] if "steal" in before._fields else 0.0
    found.append(round(100 * stolen / (sum(spent) or 1), 1))


def _until_at_rest(operator: Client) -> None:
    """Wait until no job of the service waits or runs."""
    end, calm = time.monotonic() + REVIEW_SECONDS, 0
    while calm < CALM_LOOKS:
        if time.monotonic() > end:
            raise RuntimeError(f"jobs go on after {REVIEW_SECONDS} s")
        time.sleep(1)
        busy = any(each.waiting + each.later + each.running for each in operator.fleet().queues)
        calm = 0 if busy else calm + 1


def _dataset(owner: Client, folder: Path, name: str, count: int) -> str:
    """A sealed data set of noise: an audit costs the same whatever the images show."""
    rng = np.random.default_rng(len(name) + count)
    samples = []
    for number in range(count):
        out = io.BytesIO()
        pixels = rng.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        samples.append(make_sample(f"{name}-{number:04d}", "png", out.getvalue()))
    path = folder / f"{name}.tar"
    write_shard(path, samples)
    dataset = owner.create_dataset(name)
    owner.upload_shard(dataset.id, path)
    return str(owner.seal(dataset.id).id)


def _page(result: dict[str, Any]) -> str:
    rows = [
        f"| {what} | {found['calls']} | {found['refused']} | {found['p50_ms']:g} "
        f"| **{found['p95_ms']:g}** | {found['p99_ms']:g} | {found['max_ms']:g} | {found['stolen_percent']:g} |"
        for what, found in result["latency"].items()
    ]
    many = result["many"]
    return (
        "# Waiting for an audit\n\n"
        f"{result['hardware']}; commit `{result['commit']}`; {result['date']}; 1-minute load before "
        f"the run {result['load_average_before']}.\n\n"
        "`POST /audit` with `Prefer: wait`, one call after the other, each of another draw; ten "
        "views, SimCLR, ResNet-18 of width 16; 512 retained and 512 control images to compare with. "
        "The training is Alignment Calibration of the same model on the same cores, where the client "
        f"runs too ({'throughout' if result['trained_throughout'] else 'not to the end'}). The aim is "
        f"a p95 of {AIM_MS} ms for 8 samples. Stolen: of the cores' time, by other machines of the host.\n\n"
        f"**Reviewed** samples are all {REVIEWED} of a request, which the service has audited by itself "
        "once it was completed: what encoders say about each is remembered. **Never audited** ones are "
        f"drawn from {MANY:,} of another request, so that encoders have to run.\n\n"
        "| audit of | calls | refused | p50, ms | **p95** | p99 | max | stolen, % |\n"
        "|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe first audit with a seed of one's own took {result['cold_seconds']:g} s: retained and "
        "control images are looked at in its views.\n\n"
        f"## {many['samples']:,} samples in one audit, with that seed\n\n"
        f"{many['first_seconds']:g} s, and {many['second_seconds']:g} s once more, remembered. The interactive "
        f"worker held {many['mb_before']} MB before, {many['mb_after_first']} MB after the first and "
        f"{many['mb_after_second']} MB after the second, at most {many['mb_peak']} MB in between.\n"
        f"\n    {result['command']}\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--calls", type=int, default=40)
    return parser.parse_args()


if __name__ == "__main__":
    main()
