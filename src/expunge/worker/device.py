"""Which device a worker works on, and what it is. Never loads CUDA into the worker itself."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of them is there where CUDA may find a device: NVIDIA's own driver, and that of WSL."""
LONGEST_LOOK_SECONDS = 120.0
"""For torch to be loaded and to ask the driver."""


class NoSuchDevice(Exception):
    """EXPUNGE_DEVICE names a device that is not there."""


@dataclass(frozen=True)
class Device:
    """What a worker's jobs run on."""

    kind: str
    """`cpu` or `cuda`: a label of the worker."""
    place: str
    """`cpu`, or `cuda:` and the device's number or name as CUDA_VISIBLE_DEVICES has it."""
    name: str | None = None
    id: str | None = None
    """Of a GPU, the same for every process on every host."""
    memory_bytes: int | None = None


CPU = Device("cpu", "cpu")


def visible_devices(device: str, given: str | None) -> dict[str, str]:
    """Environment of a process that is to see this device alone: of `cuda:1` only the second of those `given`.

    `given` is CUDA_VISIBLE_DEVICES of this process, None where all are visible.
    """
    if device == "cpu":
        return {VISIBLE: ""}
    _, _, digits = device.partition(":")
    number = int(digits or 0)
    if given is None:
        return {VISIBLE: str(number)}
    names = [name.strip() for name in given.split(",")]
    return {VISIBLE: names[number] if number < len(names) else ""}


def one_device(device: str) -> dict[str, str]:
    """Environment of a process of this worker that is to see the worker's device alone."""
    return os.environ | visible_devices(device, os.environ.get(VISIBLE))


def find(device: str) -> Device:
    """What `auto`, `cpu`, `cuda` or `cuda:1` is on this machine.

    Raises:
        NoSuchDevice: a GPU is asked for that CUDA does not find.
    """
    if device == "cpu" or (device == "auto" and not any(f.exists() for f in DRIVER_FILES)):
        return CPU
    environment = one_device(device)
    look = subprocess.run(
        [sys.executable, "-m", "expunge.worker.device"],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=LONGEST_LOOK_SECONDS,
        check=True,
    )
    found = json.loads(look.stdout)
    if found is None and device == "auto":
        return CPU
    if found is None:
        given = os.environ.get(VISIBLE)
        seen = "" if given is None else f" among CUDA_VISIBLE_DEVICES={given}"
        raise NoSuchDevice(f"EXPUNGE_DEVICE is {device}, but CUDA finds no such device{seen}.")
    return Device(place=f"cuda:{environment[VISIBLE]}", **found)


def _look() -> None:
    """In a process of its own: print what CUDA says of the one device that is visible."""
    import torch  # noqa: PLC0415 - the worker that imports this module for the rest goes without

    found = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        told = Device("cuda", "", properties.name, str(properties.uuid), properties.total_memory)
        found = {name: value for name, value in asdict(told).items() if name != "place"}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _look()
