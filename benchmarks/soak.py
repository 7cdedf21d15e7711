"""A hundred kills, and other faults between them, against a service at work; then the promise is checked.

The real stack of one machine with two train workers and its object store behind a proxy; tiny encoders,
so that the jobs are many. Everything is drawn from the seed; `--replay` takes a schedule of another run.

    PYTHONPATH=. python benchmarks/soak.py --kills 100 --seed 1 --name NAME

Exit status 1 if the promise was broken: the report says how.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.faults import drill, schedule
from tests.faults.injuries import Injurer, Injury
from tests.faults.promise import AT_REST
from tests.faults.records import read
from tests.faults.reference import quick_weights
from tests.faults.rig import SETTINGS, Rig
from tests.faults.users import Cast
from tests.faults.waits import seconds_beside_a_free_worker

from record import RESULTS, conditions

FOLDER = RESULTS / "soak"
PAUSE_SECONDS = (1.0, 8.0)
LANES = 2
JOB_SECONDS = 3.0
COMPARED = 5
"""Jobs trained again without disturbance, those with the most attempts."""


def main() -> int:
    """Run the schedule and write the report."""
    args = _arguments()
    torch.set_num_threads(1)
    load, started = os.getloadavg()[0], time.monotonic()
    facts = conditions(torch.device("cpu"), load, hidden=[args.folder] if args.folder else [])
    with tempfile.TemporaryDirectory(prefix="expunge-soak-") as scratch:
        folder = Path(args.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with Rig(folder) as rig, Cast(rig, folder / "cast", owners=3) as cast:
            faults = _faults(args, rig)
            print(f"seed {args.seed}: {len(faults)} faults, {args.kills} kills", flush=True)
            report: dict[str, Any] = {"seed": args.seed, "settings": dict(SETTINGS)}
            try:
                outcome = drill.run(
                    rig,
                    cast,
                    quick_weights(folder),
                    args.seed,
                    faults,
                    lanes=LANES,
                    seconds=JOB_SECONDS,
                    on_fault=lambda number, injury: _tell(number, injury, len(faults), started),
                )
                same = drill.compare_weights(rig, COMPARED)
            except AssertionError as error:
                report["broken"] = str(error)
                report["schedule"] = schedule.to_json(args.seed, faults)
                print("\n".join([str(error), *error.__notes__]), file=sys.stderr)
            else:
                report |= _figures(rig, outcome, cast, same)
    report["seconds"] = round(time.monotonic() - started, 1)
    _write(args.name, facts | report)
    return 1 if "broken" in report else 0


def _faults(args: argparse.Namespace, rig: Rig) -> Sequence[schedule.Fault]:
    if args.replay is not None:
        args.seed, faults = schedule.from_json(args.replay.read_text())
        return faults
    return schedule.plan(args.seed, Injurer(rig).kinds(), kills=args.kills, pause=tuple(args.pause))


def _tell(number: int, injury: Injury, count: int, started: float) -> None:
    seconds = time.monotonic() - started
    missed = "" if injury.hit else " (nothing to hit)"
    print(f"{seconds:6.0f} s  {number:3d}/{count}  {injury.fault.kind}{missed}", flush=True)


def _figures(rig: Rig, outcome: drill.Outcome, cast: Cast, same: dict[str, int]) -> dict[str, Any]:
    hits = Counter(str(injury.fault.kind) for injury in outcome.injuries if injury.hit)
    seconds: dict[str, list[float]] = {}
    for kind, taken in outcome.recoveries:
        seconds.setdefault(str(kind), []).append(taken)
    jobs = rig.rows(
        "SELECT kind, state, count(*) AS jobs, sum(attempt) AS attempts, max(attempt) AS most "
        "FROM jobs GROUP BY kind, state ORDER BY kind, state"
    )
    log = rig.rows("SELECT count(*) AS rows FROM log")[0]["rows"]
    return {
        "faults": dict(sorted(hits.items())),
        "kills": sum(hits[kind] for kind in schedule.KILLS),
        "missed": sum(not injury.hit for injury in outcome.injuries),
        "recovery_seconds": {kind: _spread(values) for kind, values in sorted(seconds.items())},
        "wait_seconds": _spread(seconds_beside_a_free_worker(read(rig.engine))),
        "jobs": [{**row, "attempts": int(row["attempts"])} for row in jobs],
        "asked": dict(sorted(outcome.done.items())),
        "answers": {str(status): n for status, n in sorted(cast.statuses.items())},
        "requests": rig.rows("SELECT count(*) AS n FROM requests")[0]["n"],
        "log_rows": log,
        "checks": {"times": outcome.checks, "passed": [check.__name__ for check in AT_REST]},
        "same_weights": same,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {
        "n": len(values),
        "median": round(statistics.median(ordered), 2),
        "p95": round(p95, 2),
        "max": round(ordered[-1], 2),
    }


def _write(name: str, result: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (FOLDER / f"{name}.md").write_text(_page(result))
    print(f"{FOLDER / name}.md")


def _page(result: dict[str, Any]) -> str:
    head = f"""# {result.get("kills", "?")} kills, seed {result["seed"]}

{result["hardware"]}; torch {result["torch"]}; commit `{result["commit"]}`; {result["date"]};
1-minute load before the run {result["load_average_before"]}; {result["seconds"] / 60:.1f} minutes.

    PYTHONPATH=. {result["command"]}

"""
    if "broken" in result:
        return f"{head}**The promise was broken.**\n\n{result['broken']}\n\n{result['schedule']}\n"
    recoveries = result["recovery_seconds"]
    faults = "\n".join(
        f"| {kind} | {n} | {_recovery(recoveries.get(kind))} |"
        for kind, n in result["faults"].items()
    )
    jobs = "\n".join(
        f"| {row['kind']} | {row['state']} | {row['jobs']} | {row['attempts']} | {row['most']} |"
        for row in result["jobs"]
    )
    asked = "; ".join(f"{what} {n}" for what, n in result["asked"].items())
    answers = ", ".join(f"{n} × {status}" for status, n in result["answers"].items())
    waits = result["wait_seconds"]
    same = ", ".join(str(attempts) for attempts in result["same_weights"].values())
    passed = "\n".join(f"- {name.replace('_', ' ')}" for name in result["checks"]["passed"])
    return f"""{head}**The promise was kept.** It was checked {result["checks"]["times"]} times, at last with
everything at rest and every object read to its end:

{passed}
- every named object is whole

{len(result["same_weights"])} jobs, after {same} attempts, gave bit for bit the weights of an undisturbed run.

| fault | times | seconds to the next progress: median, 95 % (n) |
|---|---|---|
{faults}

{result["missed"]} further faults found nothing to hit. Times are from the fault to the next progress of the
job that was hit, else of any job; for a store or disk from the fault's end; for the api to its next
`200` from `/readyz`.

A job that could have been claimed waited beside a free worker for {waits["median"]:.2f} s (median of
{waits["n"]}; 95 %: {waits["p95"]:.1f}, most: {waits["max"]:.1f}; outages of PostgreSQL and pauses of workers
included). Workers look for work by themselves every {result["settings"]["EXPUNGE_REPUBLISH_SECONDS"]} s at
the latest; a lease lasts {result["settings"]["EXPUNGE_LEASE_SECONDS"]} s.

| job | state | jobs | attempts | most attempts of one |
|---|---|---|---|---|
{jobs}

{result["requests"]} requests. What users asked for and has ended: {asked}. Answers of the api: {answers}.
"""


def _recovery(found: dict[str, Any] | None) -> str:
    return f"{found['median']:.1f}, {found['p95']:.1f} ({found['n']})" if found else "not seen"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--name", default="soak")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, nargs=2, default=PAUSE_SECONDS, metavar="SECONDS")
    parser.add_argument("--replay", type=Path, help="a schedule as a failed run printed it")
    parser.add_argument("--folder", type=Path, help="keep state and logs here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
