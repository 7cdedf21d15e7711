"""The clients, in processes of their own: begun, waited for, and killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from large_checkpoint.service import LOOK_SECONDS, Run

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


def upload(run: Run, model: str, file: Path, *, direct: bool = True) -> dict[str, Any]:
    return {
        "url": run.url,
        "key": run.key,
        "model": run.models[model],
        "file": str(file),
        "dataset": run.dataset_id,
        "direct": direct,
    }


def download(run: Run, checkpoint: str, file: Path) -> dict[str, Any]:
    return {"url": run.url, "key": run.key, "checkpoint": checkpoint, "file": str(file)}


def started(child: str, asked: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLIENT + CALLS[child], json.dumps(dict(asked))]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def ended(run: Run, child: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the child that should {child} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    peaks = run.memory.setdefault(f"client, {child}", {})
    kind = "large" if "small" in peaks else "small"
    peaks[kind] = max(round(found["peak_mib"]), peaks.get(kind, 0))
    return found


def finished(run: Run, child: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    return ended(run, child, started(child, asked))


def killed(run: Run, child: str, asked: Mapping[str, Any], when: Callable[[], bool]) -> None:
    process = started(child, asked)
    wait(when, process)
    process.kill()
    process.communicate()


def wait(until: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not until():
        if process.poll() is not None:
            raise SystemExit(f"a client ended with {process.returncode} before its time")
        time.sleep(LOOK_SECONDS)
