"""The example units for machines without containers: well-formed, confined, and in step with the service."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.docker.compose import ROOT

from expunge.registry.settings import SECRETS_DIR, Settings
from expunge.worker.wakeups import ROLES

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
ENVIRONMENT_FILE = ROOT / "deploy" / "systemd" / "expunge.env"
KNOWN = {f"EXPUNGE_{field}".upper() for field in Settings.model_fields} | {SECRETS_DIR}

every_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def values(unit: Path, key: str) -> list[str]:
    """All values of a key of the unit, in order."""
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


@every_unit
def test_a_unit_starts_what_there_is(unit: Path) -> None:
    (command,) = values(unit, "ExecStart")
    python, dash_m, module, *arguments = command.split()
    assert (python, dash_m) == ("/opt/expunge/bin/python", "-m")
    assert find_spec(f"{module}.__main__")
    if module == "expunge.worker":
        assert arguments[0] in {"dispatch", *ROLES}


@every_unit
def test_a_unit_gives_known_settings_and_secrets_as_files(unit: Path) -> None:
    assigned = {each.partition("=")[0] for each in values(unit, "Environment")}
    assert assigned <= KNOWN
    for credential in values(unit, "LoadCredential"):
        name, _, path = credential.partition(":")
        assert path == f"/etc/expunge/secrets/{name}"
        assert name.upper() in KNOWN


def test_the_environment_file_has_known_settings_and_no_secret() -> None:
    lines = ENVIRONMENT_FILE.read_text().splitlines()
    given = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert given <= KNOWN
    assert not any("SECRET" in key or "URL" in key for key in given)


@every_unit
def test_a_unit_is_confined_and_has_time_to_stop(unit: Path) -> None:
    assert values(unit, "User") == ["expunge"]
    assert values(unit, "NoNewPrivileges") == values(unit, "ProtectHome") == ["yes"]
    assert values(unit, "CapabilityBoundingSet") == [""]
    assert values(unit, "ProtectSystem") == ["strict"]
    assert int(*values(unit, "TimeoutStopSec")) >= 30


@pytest.fixture
def train() -> Path:
    (unit,) = (unit for unit in UNITS if unit.name == "expunge-train@.service")
    return unit


def test_a_training_process_hears_of_the_stop_from_its_worker_alone(train: Path) -> None:
    assert values(train, "KillMode") == ["mixed"]
    assert int(*values(train, "TimeoutStopSec")) >= 120


def test_one_that_the_kernel_ends_for_lack_of_memory_does_not_take_its_worker_along(
    train: Path,
) -> None:
    # Stopped, the worker would give the job back, and nobody would learn what it lacked.
    assert values(train, "OOMPolicy") == ["continue"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        # An interpreter that is there: it looks whether it could execute it.
        text = unit.read_text().replace("/opt/expunge/bin/python", "/bin/sh")
        (tmp_path / unit.name.replace("@", "@0")).write_text(text)
    command = ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
