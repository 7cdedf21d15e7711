"""Reading states at a constant rate, with and without training on the same cores, beside a bare route.

    python benchmarks/status_reads.py --name NAME [--rate 300] [--seconds 20] [--api-processes 2]

Also what a read costs the api, and what the idle stack costs: CPU seconds a minute and memory of each process.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from expunge.client import Client
from expunge.embedded.commands import MOST_API_PROCESSES
from expunge.embedded.demonstration.command import SAMPLE_FOLDER
from expunge.embedded.stack import Stack
from http_load import MILLI, Call, bare_server, send
from record import RESULTS, conditions

PORT, BARE_PORT = 8393, 8394
CONNECTIONS = 32
AIM_MS = 25
IDLE_SECONDS = 60
SETTLE_SECONDS = 10
MINUTE = 60
MEGA = 1e6
ENCODER = {
    "objective": {"framework": "simclr"},
    "architecture": {"name": "resnet18_cifar", "width": 16},
    "image_size": 32,
}


def main() -> None:
    """Measure and write the page."""
    args = _arguments()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="expunge-reads-") as folder:
        work = Path(folder)
        with (
            Stack(work / "state", PORT, api_processes=args.api_processes) as stack,
            bare_server(work, BARE_PORT),
        ):
            idle = _idle(stack)
            removal = _removal(stack)
            headers = {"authorization": f"Bearer {removal.secret}"}
            reads = {
                "bare route": (BARE_PORT, Call.of("GET", "/bare", {})),
                "GET /requests/{id}": (PORT, Call.of("GET", removal.request, headers)),
                "GET /jobs/{id}": (PORT, Call.of("GET", removal.job, headers)),
            }
            count = args.rate * args.seconds

            def measured(moment: str) -> dict[str, dict[str, Any]]:
                found = {}
                for what, (port, call) in reads.items():
                    before = _api_cpu(stack)
                    answers = send(port, [call] * count, connections=CONNECTIONS, rate=args.rate)
                    spent = [
                        after - begun for after, begun in zip(_api_cpu(stack), before, strict=True)
                    ]
                    found[f"{what}, {moment}"] = answers.summary() | {
                        "api_cpu_ms": round(MILLI * sum(spent) / count, 2),
                        "busiest_process_share": round(max(spent) / (sum(spent) or 1), 2),
                    }
                bare = found[f"bare route, {moment}"]["p99_ms"]
                return {
                    what: each | {"of_bare": round(each["p99_ms"] / bare, 1)}
                    for what, each in found.items()
                }

            with Client(stack.url, removal.secret) as client:
                job_id = removal.job.rpartition("/")[2]
                while client.job(job_id).progress is None:
                    time.sleep(0.2)
                results = measured("while a job trains")
                trained = client.job(job_id).state == "running"
                client.cancel_job(job_id)
            time.sleep(SETTLE_SECONDS)
            results |= measured("nothing trains")
    facts = conditions(torch.device("cpu"), load_before)
    result = {**facts, "rate": args.rate, "trained_throughout": trained, "latency": results}
    result |= {"api_processes": args.api_processes, "idle": idle}
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


def _idle(stack: Stack) -> dict[str, dict[str, float]]:
    """CPU seconds a minute and resident megabytes of each process, its children included."""
    time.sleep(SETTLE_SECONDS)
    before = {name: _cpu(child.pid) for name, child in stack.processes.items()}
    time.sleep(IDLE_SECONDS)
    return {
        name: {
            "cpu_seconds_per_minute": round(
                (_cpu(child.pid) - before[name]) * MINUTE / IDLE_SECONDS, 2
            ),
            "megabytes": round(psutil.Process(child.pid).memory_info().rss / MEGA),
        }
        for name, child in stack.processes.items()
    }


def _cpu(pid: int) -> float:
    process = psutil.Process(pid)
    return sum(
        times.user + times.system
        for times in (each.cpu_times() for each in [process, *process.children(recursive=True)])
    )


def _api_cpu(stack: Stack) -> list[float]:
    """CPU seconds of each api process."""
    names = [name for name in stack.processes if name.partition("-")[0] == "api"]
    return [_cpu(stack.processes[name].pid) for name in names]


@dataclass(frozen=True)
class Removal:
    """A removal whose training outlasts the measurement: the key of who may see all of it, and its paths."""

    secret: str
    request: str
    job: str


def _removal(stack: Stack) -> Removal:
    with Client(stack.url, stack.operator.secret) as operator:
        party = operator.create_party("model owner", "model_owner")
        secret = str(operator.create_key(party.id).secret)
    with Client(stack.url, secret) as owner:
        made = []
        for name in ("retained", "owner_a"):
            dataset = owner.create_dataset(name)
            owner.upload_shard(dataset.id, SAMPLE_FOLDER / f"{name}.tar")
            made.append(owner.seal(dataset.id).id)
        model = owner.create_model("encoder", ENCODER)
        owner.pretrain(model.id, made, {"epochs": 1, "batch_size": 128})
        while owner.model(model.id).head_checkpoint_id is None:
            time.sleep(0.2)
        endless = {"epochs": 10_000, "batch_size": 128}
        request = owner.create_request(model.id, [made[1]], params=endless)
        job = next(each for each in owner.jobs() if each.kind == "unlearn")
    return Removal(secret, f"/requests/{request.id}", f"/jobs/{job.id}")


def _page(result: dict[str, Any]) -> str:
    rows = [
        f"| {what} | {found['calls']} | {found['refused']} | {found['p50_ms']:g} | {found['p95_ms']:g} "
        f"| **{found['p99_ms']:g}** | {found['max_ms']:g} | {found['of_bare']:g} "
        f"| {found['api_cpu_ms'] if 'bare' not in what else '-'} |"
        for what, found in result["latency"].items()
    ]
    idle = [
        f"| {name} | {found['cpu_seconds_per_minute']:g} | {found['megabytes']:g} |"
        for name, found in result["idle"].items()
    ]
    return (
        "# Reading states while a job trains\n\n"
        f"{result['hardware']}; commit `{result['commit']}`; {result['date']}; 1-minute load before the "
        f"run {result['load_average_before']}.\n\n"
        f"{result['rate']} calls a second at a constant rate; a latency counts from when the call was due. "
        f"Alignment Calibration of SimCLR, ResNet-18 of width 16, trains on the same cores, where the "
        f"client runs too ({'throughout' if result['trained_throughout'] else 'not to the end'}). "
        f"The api has {result['api_processes']} processes. The aim is a p99 of {AIM_MS} ms.\n\n"
        "| call | calls | refused | p50, ms | p95 | **p99** | max | p99 / p99 of the bare route "
        "| CPU of the api for a read, ms |\n|---|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n## The stack when nothing happens\n\n"
        "| process | CPU seconds a minute | MB |\n|---|---|---|\n"
        + "\n".join(idle)
        + f"\n\n    {result['command']}\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--rate", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--api-processes", type=int, default=MOST_API_PROCESSES)
    return parser.parse_args()


if __name__ == "__main__":
    main()
