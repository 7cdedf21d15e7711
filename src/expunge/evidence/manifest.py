"""The run manifest: all that decides what a training run gives, so that a third party can repeat it. Runs nothing."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

import expunge
from expunge.evidence.canonical import canonical

MANIFEST_TYPE: Final = "https://expunge.dev/run-manifest/v1"
LIBRARIES = ("torch", "torchvision", "open-clip-torch", "numpy", "pillow", "safetensors")
"""Whose versions may change what a run gives."""
REVISION_VARIABLE = "EXPUNGE_REVISION"
"""Names the revision where the code runs without its repository, as in an image."""
GIT_TIMEOUT_SECONDS = 10.0


class Part(BaseModel):
    """Base of what a manifest consists of."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Data(Part):
    """A data set of the run, by the digest that sealing fixed."""

    dataset_id: str
    digest: str
    samples: int


class Weights(Part):
    """A checkpoint by the digests of its files: complete, and the part that may leave the service."""

    digest: str
    release_digest: str


class Environment(Part):
    """What the run ran on."""

    version: str = Field(description="Of Expunge.")
    revision: str | None = Field(description="Of its repository; `-dirty`: with local changes.")
    python: str
    libraries: dict[str, str]
    device: str
    precision: str
    hardware: str
    threads: int = Field(description="Of the CPU, for one operation.")
    cuda: str | None


class Manifest(Part):
    """What a third party needs to repeat a run and find the same digest."""

    type: Literal["https://expunge.dev/run-manifest/v1"]
    kind: Literal["pretrain", "unlearn"]
    encoder: dict[str, Any]
    method: str | None = Field(description="Null for pre-training.")
    params: dict[str, Any] = Field(description="Complete.")
    seed: str = Field(description="Decimal: readers of JSON round large numbers.")
    retain: list[Data] = Field(description="Trained on, or kept; in the order of the run.")
    unlearn: list[Data]
    data_root: str = Field(description="SHA-256 of the sorted digests of all data sets.")
    base: Weights | None = Field(description="What the run starts from; null for fresh weights.")
    result: Weights
    environment: Environment

    def digest(self) -> str:
        """SHA-256 of its canonical JSON, hexadecimal."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()


def data_root(data: Sequence[Data]) -> str:
    """`sha256:` and the SHA-256 of the canonical JSON list of the data sets' digests, sorted."""
    digests = sorted(each.digest for each in data)
    return f"sha256:{hashlib.sha256(canonical(digests)).hexdigest()}"


def environment(
    *, device: str, precision: str, hardware: str, threads: int, cuda: str | None
) -> Environment:
    """Of this process, which ran on this device with this number format."""
    return Environment(
        version=version("expunge"),
        revision=revision(),
        python=platform.python_version(),
        libraries={name: version(name) for name in LIBRARIES},
        device=device,
        precision=precision,
        hardware=hardware,
        threads=threads,
        cuda=cuda,
    )


def code() -> str:
    """Version and revision of the code that this process runs, in words."""
    found = revision()
    return f"expunge {version('expunge')}" + (f", revision {found}" if found else "")


@cache
def revision() -> str | None:
    """Of the code that this process runs: as the environment names it, or of the repository that it runs from."""
    if named := os.environ.get(REVISION_VARIABLE):
        return named
    root = Path(expunge.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        told = subprocess.run(  # noqa: S603 - no word of it is a caller's
            command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None
