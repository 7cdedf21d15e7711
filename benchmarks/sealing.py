"""What sealing the log costs: appending rows with and without its trigger, sealing, proving, checking.

    python benchmarks/sealing.py --name NAME [--rows 50000]

A PostgreSQL that writes through to the disk, with nothing else to do.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from expunge.embedded.postgres import start_postgres
from expunge.evidence.signing import Signer
from expunge.registry import log
from expunge.registry.database import Sessions, connect, sessions
from expunge.registry.migration import migrate
from expunge.registry.record import checking, proofs, sealing
from record import RESULTS, conditions

ROUNDS = 3
TRANSACTIONS = 200
BULK_ROWS = 10_000
REPEATS = 20
PAGE_ROWS = 200
MILLI, MICRO = 1e3, 1e6


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="of the files under results/")
    parser.add_argument("--rows", type=int, default=50_000)
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="expunge-sealing-") as folder,
        start_postgres(Path(folder)) as address,
    ):
        migrate(address)
        engine = connect(address)
        measured = _appending(sessions(engine)) | _sealed(sessions(engine), args.rows)
        engine.dispose()
    facts = conditions(torch.device("cpu"), load_before)
    result = {**facts, "rows": args.rows, "measured": measured}
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{args.name}.md").write_text(_page(result))


def _appending(opened: Sessions) -> dict[str, float]:
    """Both ways in turns, the median of the rounds."""
    singles: dict[str, list[float]] = {"with": [], "without": []}
    bulks: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(ROUNDS):
        for way, switch in (("with", "ENABLE"), ("without", "DISABLE")):
            _run(opened, f"ALTER TABLE log {switch} TRIGGER log_is_sealed_later")
            singles[way].append(_seconds(lambda: _append(opened), TRANSACTIONS) * MILLI)
            bulks[way].append(_seconds(lambda: _fill(opened, BULK_ROWS), 1) / BULK_ROWS * MICRO)
    _run(opened, "ALTER TABLE log ENABLE TRIGGER log_is_sealed_later", "DELETE FROM log_unsealed")
    return {
        f"{what}, {way} the trigger": statistics.median(values)
        for what, ways in (
            ("transaction of one row, ms", singles),
            ("row of a large insert, µs", bulks),
        )
        for way, values in ways.items()
    }


def _sealed(opened: Sessions, rows: int) -> dict[str, float]:
    signer = Signer(Ed25519PrivateKey.generate())
    _fill(opened, rows)
    before = time.perf_counter()
    while _batch(opened, signer):
        pass
    found = {"rows sealed a second": rows / (time.perf_counter() - before)}
    with opened() as session:
        size = proofs.head_of(session).size
        page = range(0, size, max(1, size // PAGE_ROWS))
        keys = [signer.public_key]
        calls: dict[str, Callable[[], Any]] = {
            "inclusion proof, ms": lambda: proofs.inclusion(session, [size // 3], size),
            f"{PAGE_ROWS} inclusion proofs, ms": lambda: proofs.inclusion(session, page, size),
            "consistency proof, ms": lambda: proofs.consistency(session, size // 3, size),
            f"check of {checking.PART} rows, ms": lambda: checking.check(
                session, keys, start=size // 2
            ),
        }
        return found | {name: _seconds(call, REPEATS) * MILLI for name, call in calls.items()}


def _append(opened: Sessions) -> None:
    with opened.begin() as session:
        log.append(session, "pty_1", "req_1", "noted", reason="because it was measured")


def _fill(opened: Sessions, rows: int) -> None:
    many = text(
        "INSERT INTO log (actor, subject_id, event, detail) SELECT 'pty_' || (n % 100),"
        " 'req_' || (n % 1000), 'noted', jsonb_build_object('reason', 'because of ' || n)"
        " FROM generate_series(1, :rows) n"
    )
    with opened.begin() as session:
        session.execute(many, {"rows": rows})


def _batch(opened: Sessions, signer: Signer) -> int:
    with opened.begin() as session:
        return sealing.seal(session, signer)


def _run(opened: Sessions, *statements: str) -> None:
    with opened.begin() as session:
        for statement in statements:
            session.execute(text(statement))


def _seconds(call: Callable[[], Any], times: int) -> float:
    """Of one call, on average."""
    before = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - before) / times


def _page(result: dict[str, Any]) -> str:
    lines = [f"| {what} | {value:,.3g} |" for what, value in result["measured"].items()]
    return f"""# What sealing the log costs

{result["hardware"]}; commit `{result["commit"]}`; {result["date"]};
1-minute load before the run {result["load_average_before"]}; {result["rows"]:,} rows sealed.

| what | measured |
|---|---|
{chr(10).join(lines)}

    {result["command"]}
"""


if __name__ == "__main__":
    main()
