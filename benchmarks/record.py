"""What every benchmark result carries: hardware, commit, date, command, load; and its page. Measures nothing."""

import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CPU_INFO = Path("/proc/cpuinfo")

Speeds = Mapping[str, Sequence[float]]
"""Images per second of each way, one value a repeat."""


def describe_hardware(device: torch.device) -> str:
    """The processor or GPU, with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if CPU_INFO.exists():
        found = re.search(r"model name\s*: (.*)", CPU_INFO.read_text(encoding="ascii"))
        model = found.group(1) if found else model
    return f"{model}, {os.cpu_count()} cores"


def conditions(device: torch.device, load_before: float, *, hidden: Sequence[str] = ()) -> dict:
    """Everything needed to repeat the measurement; folders in `hidden` are shown as DIR."""
    folders = {Path(each) for each in hidden}
    shown = [_without(folders, part) for part in sys.argv[1:]]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": describe_hardware(device),
        "load_average_before": round(load_before, 2),
        "torch": torch.__version__,
    }


def commit() -> str:
    """Of the code that runs, `-dirty` with changes; from COMMIT outside a checkout, or unknown."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=HERE)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")
    return found.stdout.strip()


def _without(folders: Collection[Path], argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and Path(value) in folders:
        return f"{option}=DIR"
    return "DIR" if Path(argument) in folders else argument


def summary(speeds: Speeds) -> dict[str, Any]:
    """Median and all values of each way."""
    return {
        way: {
            "median": round(statistics.median(values), 1),
            "all": [round(value, 1) for value in values],
        }
        for way, values in speeds.items()
    }


def write(name: str, title: str, result: Mapping[str, Any], closing: str) -> None:
    """The result as JSON and as a page to read."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    rows = [
        f"| {way} | {s['median']:,.0f} | {min(s['all']):,.0f} to {max(s['all']):,.0f} |"
        for way, s in result["images_per_second"].items()
    ]
    settings = "; ".join(
        f"{key.replace('_', ' ')}: {value}" for key, value in result["settings"].items()
    )
    page = f"""# {title}

{result["hardware"]}; torch {result["torch"]}; commit `{result["commit"]}`; {result["date"]};
1-minute load before the run {result["load_average_before"]}.

| way | images/s, median | range |
|---|---|---|
{chr(10).join(rows)}

{closing}

{settings}.

    {result["command"]}
"""
    (RESULTS / f"{name}.md").write_text(page)
