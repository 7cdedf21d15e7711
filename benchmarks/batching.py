"""A thousand owners ask one model to forget them, all at once: how many jobs, how fast, beside a bare route.

    python benchmarks/batching.py --name NAME [--owners 1000] [--connections 64]

The embedded stack over HTTP; owners, sealed data sets and the trained checkpoint are written into the
database directly, since only the asking is measured. Nothing is trained.
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from sqlalchemy import func, select

from expunge.embedded.stack import Stack
from expunge.registry import checkpoints, datasets, models, parties, waiting
from expunge.registry.database import Sessions, connect, sessions
from expunge.registry.policies import Policy
from expunge.registry.tables import Job, JobKind, Request, Role
from expunge.registry.transitions import move
from expunge.unlearning.catalog import EncoderSpec, PretrainParams, SimCLR
from http_load import Call, bare_server, send
from record import RESULTS, conditions

WINDOW_SECONDS = 3600
SAMPLES = 8
PORT, BARE_PORT = 8391, 8392


@dataclass(frozen=True)
class Owner:
    """One who asks: a key, and the one data set that the key's party owns."""

    secret: str
    dataset_id: str


def main() -> None:
    """Ask, count the jobs, and write the page."""
    args = _arguments()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="expunge-batching-") as folder:
        work = Path(folder)
        with Stack(work / "state", PORT) as stack, bare_server(work, BARE_PORT):
            engine = connect(stack.environment["EXPUNGE_DATABASE_URL"])
            made = sessions(engine)
            model_id, owners = _world(made, args.owners)
            body = {"method": "alignment_calibration", "model_id": model_id}
            calls = [_ask(owner, body) for owner in owners]
            bare = [Call.of("POST", "/bare", JSON, _body(body)) for _ in owners]
            results = {
                "bare route": send(BARE_PORT, bare, connections=args.connections).summary(),
                "POST /requests": send(PORT, calls, connections=args.connections).summary(),
                "the same, repeated": send(PORT, calls, connections=args.connections).summary(),
            }
            with made() as session:
                jobs = session.scalar(
                    select(func.count()).select_from(Job).where(Job.kind == JobKind.UNLEARN)
                )
                requests = session.scalar(select(func.count()).select_from(Request))
            engine.dispose()
    facts = conditions(torch.device("cpu"), load_before)
    result = {**facts, "owners": args.owners, "connections": args.connections, "jobs": jobs}
    result |= {"requests": requests, "latency": results}
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


JSON = {"content-type": "application/json"}


def _body(content: dict[str, object]) -> bytes:
    return json.dumps(content).encode()


def _ask(owner: Owner, body: dict[str, object]) -> Call:
    headers = JSON | {
        "authorization": f"Bearer {owner.secret}",
        "idempotency-key": f"for-{owner.dataset_id}",
    }
    return Call.of("POST", "/requests", headers, _body(body | {"dataset_ids": [owner.dataset_id]}))


def _world(made: Sessions, count: int) -> tuple[str, list[Owner]]:
    """A model that was trained on one data set of each owner, and on one of its own."""
    owners = []
    with made.begin() as session:
        model_owner = parties.create_party(session, "model owner", Role.MODEL_OWNER, actor="test")
        everything = []
        for number in range(count + 1):
            party = model_owner
            if number:
                party = parties.create_party(
                    session, f"owner {number}", Role.DATA_OWNER, actor="test"
                )
            dataset = datasets.create(session, party, f"images {number}")
            dataset.samples = SAMPLES
            move(session, dataset, "sealing")
            move(session, dataset, "sealed", digest="sha256:0", index_key="none")
            everything.append(dataset.id)
            if number:
                datasets.grant(session, party, dataset.id, model_owner.id)
                key = parties.issue_key(session, party.id, expires_in_days=None, actor="test")
                owners.append(Owner(str(key.secret), dataset.id))
        policy = Policy(batch_window_seconds=WINDOW_SECONDS)
        encoder = EncoderSpec(objective=SimCLR())
        model = models.create(
            session, model_owner, "encoder", encoder, policy=policy, control_dataset_id=None
        )
        job = models.start_pretraining(
            session, model_owner, model.id, everything, PretrainParams(), seed=0
        )
        # In the same transaction: the stack's own worker must not take it.
        job.due_at = func.now()
        lease = _claimed(session, job)
        weights = checkpoints.StoredWeights("sha256:1", "1", 1, "sha256:1", "1")
        checkpoints.record_pretrained(session, lease, weights, {"seconds": 1.0})
        return model.id, owners


def _claimed(session: object, job: Job) -> waiting.Lease:
    job.state, job.attempt, job.lease_token = "running", 1, "benchmark"
    job.claimed_at = func.now()
    session.flush()  # type: ignore[attr-defined]
    return waiting.Lease(job.id, JobKind.PRETRAIN, "benchmark", 1)


def _page(result: dict) -> str:
    rows = [
        f"| {what} | {found['calls']} | {found['refused']} | {found['per_second']:g} "
        f"| {found['p50_ms']:g} | {found['p95_ms']:g} | **{found['p99_ms']:g}** | {found['max_ms']:g} |"
        for what, found in result["latency"].items()
    ]
    bare, ours = (
        result["latency"][each]["per_second"] for each in ("bare route", "POST /requests")
    )
    return (
        "# A thousand requests, one job\n\n"
        f"{result['hardware']}; commit `{result['commit']}`; {result['date']}; 1-minute load before the "
        f"run {result['load_average_before']}.\n\n"
        f"{result['owners']} owners asked one model to forget one data set each, over "
        f"{result['connections']} connections at once: **{result['requests']} requests, "
        f"{result['jobs']} job**. A bare FastAPI route answers {bare / ours:.1f} times as many calls "
        "a second on the same machine, where the client takes its share of the cores.\n\n"
        "| call | calls | refused | per second | p50, ms | p95 | **p99** | max |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "Requests of one model take turns (its row is locked while one is checked against the others and "
        "joins the job), so latency is mostly waiting for those before.\n\n"
        f"    {result['command']}\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--owners", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
