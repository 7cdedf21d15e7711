"""Reading a job's state at a constant rate, with and without training on the same cores, beside a bare route.

    python benchmarks/status_reads.py --name NAME [--rate 300] [--seconds 20]

Also what the idle stack costs: CPU seconds a minute and memory of each process.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from expunge.client import Client
from expunge.embedded.demonstration.command import SAMPLE_FOLDER
from expunge.embedded.stack import Stack
from http_load import Call, bare_server, send
from record import RESULTS, conditions

PORT, BARE_PORT = 8393, 8394
CONNECTIONS = 32
AIM_MS = 25
IDLE_SECONDS = 30
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
        with Stack(work / "state", PORT) as stack, bare_server(work, BARE_PORT):
            idle = _idle(stack)
            owner, job_id = _training(stack)
            headers = {"authorization": f"Bearer {owner}"}
            count = args.rate * args.seconds
            bare = [Call.of("GET", "/bare", {})] * count
            reads = [Call.of("GET", f"/jobs/{job_id}", headers)] * count

            def measured(port: int, calls: list[Call]) -> dict[str, Any]:
                return send(port, calls, connections=CONNECTIONS, rate=args.rate).summary()

            with Client(stack.url, owner) as client:
                while client.job(job_id).progress is None:
                    time.sleep(0.2)
                results = {
                    "bare route, while a job trains": measured(BARE_PORT, bare),
                    "GET /jobs/{id}, while a job trains": measured(PORT, reads),
                }
                trained = client.job(job_id).state == "running"
                client.cancel_job(job_id)
                time.sleep(5)
            results["GET /jobs/{id}, nothing trains"] = measured(PORT, reads)
    facts = conditions(torch.device("cpu"), load_before)
    result = {**facts, "rate": args.rate, "trained_throughout": trained, "latency": results}
    result["idle"] = idle
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


def _idle(stack: Stack) -> dict[str, dict[str, float]]:
    """CPU seconds a minute and resident megabytes of each process, its children included."""
    time.sleep(10)
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


def _training(stack: Stack) -> tuple[str, str]:
    """A model owner's key and a pre-training job that outlasts the measurement."""
    with Client(stack.url, stack.operator.secret) as operator:
        party = operator.create_party("model owner", "model_owner")
        secret = str(operator.create_key(party.id).secret)
    with Client(stack.url, secret) as owner:
        dataset = owner.create_dataset("images")
        owner.upload_shard(dataset.id, SAMPLE_FOLDER / "retained.tar")
        owner.seal(dataset.id)
        model = owner.create_model("encoder", ENCODER)
        job = owner.pretrain(model.id, [dataset.id], {"epochs": 10_000, "batch_size": 128})
    return secret, job.id


def _page(result: dict[str, Any]) -> str:
    rows = [
        f"| {what} | {found['calls']} | {found['refused']} | {found['p50_ms']:g} | {found['p95_ms']:g} "
        f"| **{found['p99_ms']:g}** | {found['max_ms']:g} |"
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
        f"SimCLR, ResNet-18 of width 16, trains on the same cores, where the client runs too. "
        f"The aim is a p99 of {AIM_MS} ms.\n\n"
        "| call | calls | refused | p50, ms | p95 | **p99** | max |\n|---|---|---|---|---|---|---|\n"
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
    return parser.parse_args()


if __name__ == "__main__":
    main()
