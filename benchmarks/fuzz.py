"""Thousands of generated calls by every role to every route of the api: what was answered, and what was wrong.

A real api process over a real PostgreSQL, a worker that seals data sets, audits and encodes, and two
groups of parties that share nothing with each other. All calls are drawn from the seed, and sent in passes
that are alike: the api's memory has to be flat over the later ones.

    PYTHONPATH=. python benchmarks/fuzz.py --name NAME [--seed 6]

Exit status 1 if an answer was wrong or the api's memory grew: the report says how.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import torch
from tests.api.conftest import Past
from tests.api.removed import quick_worker
from tests.fuzzing.campaigns import Campaign, Plan
from tests.fuzzing.files import known_to_schemathesis
from tests.fuzzing.islands import World
from tests.fuzzing.judging import Judge, table
from tests.fuzzing.sending import Sender

from expunge.embedded.postgres import start_postgres
from expunge.evidence.signing import Signer
from expunge.registry.database import connect, sessions
from expunge.registry.migration import migrate
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.worker.sealer import Sealer
from flatness import BOUND, Sample, trend
from http_load import HOST, free_ports
from record import RESULTS, conditions

START_SECONDS = 60
SAMPLE_CALLS = 50
"""Between two looks at the api's memory."""
MEGA = 1e6


def main() -> int:
    """Send everything and write the report."""
    args = _arguments()
    torch.set_num_threads(1)
    load_before, started = os.getloadavg()[0], time.monotonic()
    facts = conditions(
        torch.device("cpu"), load_before, hidden=[args.folder] if args.folder else []
    )
    plan = Plan(
        args.seed, args.edges, args.draws, args.tokens, args.chains, args.reads, args.passes
    )
    with tempfile.TemporaryDirectory(prefix="expunge-fuzz-") as scratch:
        folder = Path(args.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result = facts | _fuzzed(folder, plan)
    result["seconds"] = round(time.monotonic() - started)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))
    for finding in result["findings"]:
        print(f"{finding['count']} x {finding['kind']} at {finding['operation']}")
        print(finding["example"])
    return 1 if result["findings"] or not result["memory"]["flat"] else 0


def _fuzzed(folder: Path, plan: Plan) -> dict[str, Any]:
    Signer.create(folder / "key.pem")
    with start_postgres(folder / "postgres", durable=False) as database_url:
        migrate(database_url)
        given = {
            "database_url": database_url,
            # There is none: calls are counted in the api's memory.
            "redis_url": f"redis://{HOST}:1/0",
            "object_store": (folder / "objects").as_uri(),
            "work_dir": str(folder / "work"),
            "signing_key_file": str(folder / "key.pem"),
            "device": "cpu",
        }
        settings = Settings(**given)
        engine = connect(database_url)
        sealer = Sealer(settings, sessions(engine))

        def seal() -> None:
            while sealer.step():
                pass

        [port] = free_ports(1)
        with _api(given, port, folder / "api.log") as api, quick_worker(settings, engine):
            past = Past(sessions(engine), open_store(settings), folder)
            world = World.build(past, f"http://{HOST}:{port}", plan.seed, seal)
            known_to_schemathesis(folder, plan.seed)
            sender = Sender(world, Judge(world), plan.seed)
            samples: list[Sample] = []

            def look(count: int) -> None:
                if count % SAMPLE_CALLS == 0:
                    seal()
                    samples.append(_sample(api, number, count))

            sender.on_sent = look
            campaign = Campaign(sender, plan)
            for number in range(plan.passes):
                campaign.run(number)
            world.close()
        engine.dispose()
    return _summary(plan, sender, samples)


@contextmanager
def _api(given: dict[str, str], port: int, log: Path) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "expunge.api", "--host", HOST, "--port", str(port)]
    environment = os.environ | {f"EXPUNGE_{name.upper()}": value for name, value in given.items()}
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://{HOST}:{port}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _sample(api: psutil.Process, number: int, calls: int) -> Sample:
    found = api.memory_full_info()
    return Sample(
        number,
        calls,
        round(found.rss / MEGA, 1),
        round(found.uss / MEGA, 1),
        api.num_fds(),
        api.num_threads(),
    )


def _summary(plan: Plan, sender: Sender, samples: list[Sample]) -> dict[str, Any]:
    found = trend(samples)
    seconds, operation = sender.slowest
    return {
        "plan": asdict(plan),
        "calls": sender.sent,
        "unsendable": sender.unsendable,
        "slowest": {"seconds": round(seconds, 2), "operation": operation},
        "memory": {
            "flat": found.is_flat,
            "megabytes": round(found.megabytes, 1),
            "slope": round(found.slope, 3),
            "share": round(found.share, 5),
            "passes": [_of_pass(number, samples) for number in range(plan.passes)],
            "samples": [list(asdict(each).values()) for each in samples],
        },
        "findings": [asdict(each) for each in sender.judge.findings.values()],
        "answers": table(sender.judge.answers),
    }


def _of_pass(number: int, samples: list[Sample]) -> dict[str, float]:
    here = [each for each in samples if each.number == number]
    return {
        "calls": here[-1].calls,
        "resident": round(median(each.resident for each in here), 1),
        "own": round(median(each.own for each in here), 1),
        "least": min(each.own for each in here),
        "most": max(each.own for each in here),
        "files": here[-1].files,
        "threads": here[-1].threads,
    }


def _page(result: dict[str, Any]) -> str:
    statuses: Counter[str] = Counter()
    rows = []
    for operation, callers in result["answers"].items():
        found: Counter[str] = Counter()
        for by_status in callers.values():
            found.update(by_status)
        statuses.update(found)
        rows.append(f"| {operation} | {found.total()} | {len(callers)} | {_counts(found)} |")
    callers: dict[str, Counter[str]] = {}
    for name, by_status in itertools.chain.from_iterable(
        each.items() for each in result["answers"].values()
    ):
        callers.setdefault(name, Counter()).update(by_status)
    by_caller = [f"| {name} | {each.total()} | {_counts(each)} |" for name, each in callers.items()]
    memory = result["memory"]
    passes = [
        f"| {number} | {each['calls']} | {each['resident']:g} | {each['own']:g} | {each['least']:g} to "
        f"{each['most']:g} | {each['files']} | {each['threads']} |"
        for number, each in enumerate(memory["passes"], start=1)
    ]
    wrong = [
        f"- {each['count']} × {each['kind']} at `{each['operation']}`"
        for each in result["findings"]
    ]
    return (
        "# Generated calls to every route\n\n"
        f"{result['hardware']}; commit `{result['commit']}`; {result['date']}; 1-minute load before the "
        f"run {result['load_average_before']}; {result['seconds']} s.\n\n"
        f"{result['calls']:,} calls ({result['unsendable']} of them no client would put on the wire) to "
        f"{len(rows)} routes by {len(callers)} callers: {_counts(statuses)}. "
        f"The slowest answer took {result['slowest']['seconds']} s (`{result['slowest']['operation']}`).\n\n"
        "**Wrong answers** (server errors, hangs, broken connections, undocumented statuses and media "
        "types, bodies that do not fit their schema, anything that names what belongs to others): "
        + ("none.\n\n" if not wrong else "\n\n" + "\n".join(wrong) + "\n\n")
        + f"**Memory of the api** is {'flat' if memory['flat'] else 'NOT flat'}: in the second half of "
        f"{len(passes)} equal passes, its own memory (USS, median {memory['megabytes']:g} MB) changed by "
        f"{memory['slope']:+.2f} MB ({memory['share']:+.2%}) in a thousand calls; at most {BOUND:.0%} is flat. "
        f"(The median slope between any two of the samples, one every {SAMPLE_CALLS} calls.)\n\n"
        "| pass | calls so far | RSS, MB, median | USS, MB, median | USS, from to | open files | threads |\n"
        "|---|---|---|---|---|---|---|\n"
        + "\n".join(passes)
        + "\n\n## By caller\n\n| caller | calls | answers |\n|---|---|---|\n"
        + "\n".join(by_caller)
        + "\n\n## By route\n\n| operation | calls | callers | answers |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\n    PYTHONPATH=. {result['command']}\n"
    )


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(found.items()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--passes", type=int, default=40, help="alike; at least 2")
    parser.add_argument("--edges", type=int, default=170, help="boundary values in a pass")
    parser.add_argument(
        "--draws", type=int, default=1, help="cases of a route by a caller in a pass"
    )
    parser.add_argument("--tokens", type=int, default=90, help="raw JSON bodies in a pass")
    parser.add_argument("--chains", type=int, default=2, help="of each caller in a pass")
    parser.add_argument(
        "--reads", type=int, default=2, help="callers who read all they can in a pass"
    )
    parser.add_argument("--folder", help="keep the database, the objects and the api's log here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
