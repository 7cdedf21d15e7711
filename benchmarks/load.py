"""A mixture of calls as users make them, at rising rates, beside a bare FastAPI route on the same cores.

    python benchmarks/load.py --name NAME [--seconds 8] [--rates 25 50 100 200 400]

Reads of states, lists and the log, new data sets, uploads of small shards, repeated requests and audits
that nobody waits for. Every measurement, also that of the bare route, begins with no audit left over from the one
before. Stops at the first rate that the service does not keep up with.
"""

import argparse
import hashlib
import io
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from expunge.client import Client
from expunge.embedded.stack import Stack
from expunge.formats.digests import content_digest
from expunge.formats.shards import make_sample, write_shard
from http_load import Answers, Call, bare_server, free_ports, send
from record import RESULTS, conditions

CONNECTIONS = 32
MIXTURE = {
    "read a request": 40, "read a job": 15, "list requests": 14, "list data sets": 8, "read the log": 8,
    "open a data set": 5, "upload a shard": 5, "repeat a request": 3, "ask for an audit": 2,
}  # fmt: skip
"""Calls of each kind in a hundred."""
KEPT_UP, SLOW_MS = 0.95, 1000
"""A rate is kept up with if so much of it is answered, 99 of 100 calls within so long, and none refused."""
UNPACED_CALLS, BARE_CALLS, ROUNDS = 600, 3000, 3
"""Of calls as fast as they go, to the service and to the bare route in turn: each one's median counts."""
DRAIN_SECONDS = 20
SEED = 6
FIRST = "first"
"""The Idempotency-Key of the one request."""
IMAGE_SIZE, SAMPLES = 16, 24
ENCODER = {
    "objective": {"framework": "simclr", "projector_hidden": 16, "projector_dim": 8},
    "architecture": {"name": "resnet18_cifar", "width": 4},
    "image_size": IMAGE_SIZE,
}
SETTINGS = {"EXPUNGE_AUDIT_BUDGET_PER_DAY": "1000000"}


@dataclass
class Users:
    """A model's owner with a completed removal, as whom all calls are made."""

    operator: Client
    secret: str
    request: str
    job: str
    asked: dict[str, Any]
    """The body that made the request."""
    filling: str
    """The data set that takes shards."""
    folder: Path
    made: int = 0

    def calls(self, count: int) -> tuple[list[str], list[Call]]:
        """So many calls of the mixture and their kinds; never the same write twice."""
        kinds = [kind for kind, share in MIXTURE.items() for _ in range(share)]
        rng = random.Random(SEED + count)  # noqa: S311 - repeatable, not secret
        chosen = [rng.choice(kinds) for _ in range(count)]
        return chosen, [self._call(kind) for kind in chosen]

    def drained(self) -> None:
        """Wait until nothing is queued or runs; after DRAIN_SECONDS go on all the same."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline and any(
            each.waiting or each.running for each in self.operator.fleet().queues
        ):
            time.sleep(0.2)

    def _call(self, kind: str) -> Call:
        self.made += 1
        reads = {
            "read a request": f"/requests/{self.request}",
            "read a job": f"/jobs/{self.job}",
            "list requests": "/requests?limit=20",
            "list data sets": "/datasets?limit=20",
            "read the log": "/log?limit=20",
        }
        audit = {"request_id": self.request, "views": 2, "seed": self.made}
        writes: dict[str, tuple[str, Any, dict[str, str]]] = {
            "open a data set": ("/datasets", {"name": f"images {self.made}"}, {}),
            "repeat a request": ("/requests", self.asked, {"idempotency-key": FIRST}),
            "ask for an audit": ("/audit", audit, {}),
        }
        if kind in reads:
            return self._of("GET", reads[kind])
        if kind in writes:
            path, content, headers = writes[kind]
            body = json.dumps(content).encode()
            return self._of("POST", path, body, {"content-type": "application/json"} | headers)
        data = tar(self.folder, 2, seed=self.made)
        digest = {"content-digest": content_digest(hashlib.sha256(data).hexdigest())}
        path = f"/datasets/{self.filling}/shards/part-{self.made}.tar"
        return self._of("PUT", path, data, digest)

    def _of(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Call:
        key = {"authorization": f"Bearer {self.secret}"}
        return Call.of(method, path, {**key, **(headers or {})}, body)


def main() -> None:
    """Measure and write the page."""
    args = _arguments()
    load_before = os.getloadavg()[0]
    facts = conditions(torch.device("cpu"), load_before)
    with tempfile.TemporaryDirectory(prefix="expunge-load-") as folder:
        work = Path(folder)
        port, bare_port = free_ports(2)
        with (
            Stack(work / "state", port, extra=SETTINGS) as stack,
            bare_server(work, bare_port),
            Client(stack.url, stack.operator.secret) as operator,
        ):
            users = _users(operator, stack, work)
            steps = []
            for rate in args.rates:
                steps.append(_step(users, port, bare_port, rate, args.seconds))
                if not steps[-1]["kept_up"]:
                    break
            unpaced = _unpaced(users, port, bare_port)
    result = {**facts, "mixture": MIXTURE, "seconds": args.seconds, "steps": steps}
    result["unpaced"] = unpaced
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


def _step(users: Users, port: int, bare_port: int, rate: int, seconds: int) -> dict[str, Any]:
    kinds, calls = users.calls(rate * seconds)
    bare = Call.of("GET", "/bare", {})
    users.drained()
    beside = send(bare_port, [bare] * len(calls), connections=CONNECTIONS, rate=rate)
    found = send(port, calls, connections=CONNECTIONS, rate=rate)
    service = found.summary()
    kept_up = (
        service["per_second"] >= KEPT_UP * rate
        and service["p99_ms"] <= SLOW_MS
        and not service["refused"]
    )
    return {
        "rate": rate,
        "service": service,
        "bare": beside.summary(),
        "statuses": dict(sorted(Counter(map(str, found.statuses)).items())),
        "kinds": {kind: _part(found, kinds, kind) for kind in MIXTURE if kind in kinds},
        "kept_up": kept_up,
    }


def _part(found: Answers, kinds: Sequence[str], kind: str) -> dict[str, float | int]:
    places = [place for place, each in enumerate(kinds) if each == kind]
    statuses = [found.statuses[place] for place in places]
    part = Answers(statuses, [found.seconds[place] for place in places], found.elapsed)
    return part.summary()


def _unpaced(users: Users, port: int, bare_port: int) -> dict[str, Any]:
    """As fast as it goes over all connections: what one api process can do, and a bare route."""
    bare = Call.of("GET", "/bare", {})
    rounds = []
    for _ in range(ROUNDS):
        _, calls = users.calls(UNPACED_CALLS)
        users.drained()
        beside = send(bare_port, [bare] * BARE_CALLS, connections=CONNECTIONS)
        rounds.append((send(port, calls, connections=CONNECTIONS), beside))
    service, beside = (
        sorted((each.summary() for each in found), key=lambda each: each["per_second"])[ROUNDS // 2]
        for found in zip(*rounds, strict=True)
    )
    ratio = beside["per_second"] / service["per_second"]
    return {"service": service, "bare": beside, "ratio": round(ratio, 1)}


def _users(operator: Client, stack: Stack, folder: Path) -> Users:
    party = operator.create_party("model owner", "model_owner")
    secret = str(operator.create_key(party.id).secret)
    with Client(stack.url, secret) as owner:
        made = []
        for number in range(2):
            dataset = owner.create_dataset(f"set {number}")
            shard = folder / "set.tar"
            shard.write_bytes(tar(folder, SAMPLES, seed=-number - 1))
            owner.upload_shard(dataset.id, shard)
            made.append(owner.seal(dataset.id).id)
        model = owner.create_model("encoder", ENCODER)
        pretraining = owner.pretrain(model.id, made, {"epochs": 1, "batch_size": 8})
        _wait(lambda: owner.job(pretraining.id).state, "succeeded")
        params = {"epochs": 1, "batch_size": 8}
        asked = {"model_id": model.id, "dataset_ids": made[1:], "method": "fine_tune"}
        request = owner.create_request(**asked, params=params, idempotency_key=FIRST)
        _wait(lambda: owner.request(request.id).state, "completed")
        job = next(each for each in owner.jobs() if each.kind == "unlearn")
        filling = owner.create_dataset("to be filled").id
    asked["params"] = params
    return Users(operator, secret, request.id, job.id, asked, filling, folder)


def _wait(state: Callable[[], str], wanted: str) -> None:
    while (found := state()) != wanted:
        if found in ("failed", "cancelled", "rejected"):
            raise SystemExit(f"What is to be read has {found}: see the log of the training worker.")
        time.sleep(0.2)


def tar(folder: Path, count: int, *, seed: int) -> bytes:
    """A shard of so many noise images."""
    rng = np.random.default_rng(abs(seed))
    samples = []
    for number in range(count):
        out = io.BytesIO()
        pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        samples.append(make_sample(f"i{seed % 10**6}-{number}", "png", out.getvalue(), 0))
    path = folder / "one.tar"
    write_shard(path, samples)
    return path.read_bytes()


def _page(result: dict[str, Any]) -> str:
    rows = []
    for step in result["steps"]:
        for what, found in (("service", step["service"]), ("bare route", step["bare"])):
            rows.append(
                f"| {step['rate']} | {what} | {found['calls']} | {found['refused']} | "
                f"{found['per_second']:g} | {found['p50_ms']:g} | {found['p95_ms']:g} | "
                f"**{found['p99_ms']:g}** | {found['max_ms']:g} |"
            )
    kept = [step for step in result["steps"] if step["kept_up"]]
    shown = kept[-1] if kept else result["steps"][0]
    kinds = [
        f"| {kind} | {found['calls']} | {found['refused']} | {found['p50_ms']:g} | {found['p95_ms']:g} "
        f"| {found['p99_ms']:g} |"
        for kind, found in shown["kinds"].items()
    ]
    unpaced = result["unpaced"]
    highest = f"{kept[-1]['rate']} calls a second" if kept else "none of the rates"
    shares = ", ".join(f"{share} {kind}" for kind, share in result["mixture"].items())
    return (
        "# A mixture of calls at rising rates\n\n"
        f"{result['hardware']}; commit `{result['commit']}`; {result['date']}; 1-minute load before the "
        f"run {result['load_average_before']}.\n\n"
        f"In a hundred calls: {shares}. {result['seconds']} s a rate; a latency counts from when the call "
        "was due. The stack of one machine as `expunge up` starts it and the client share the cores.\n\n"
        f"**Kept up with: {highest}** ({KEPT_UP:.0%} answered in time, p99 of at most {SLOW_MS} ms, none "
        f"refused). As fast as {CONNECTIONS} connections go, the median of {ROUNDS} rounds: "
        f"{unpaced['service']['per_second']:g} calls a second, the bare route, which only reads, "
        f"{unpaced['bare']['per_second']:g}: **{unpaced['ratio']:g} times** as many.\n\n"
        "| calls a second | what | calls | refused | answered a second | p50, ms | p95 | **p99** | max |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\n## By kind, at {shown['rate']} calls a second\n\n"
        "| call | calls | refused | p50, ms | p95 | p99 |\n|---|---|---|---|---|---|\n"
        + "\n".join(kinds)
        + f"\n\n    {result['command']}\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rates", type=int, nargs="+", default=[25, 50, 100, 200, 400])
    return parser.parse_args()


if __name__ == "__main__":
    main()
