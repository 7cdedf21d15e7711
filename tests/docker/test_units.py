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

SIGNING_KEY = "signing-key.pem:/etc/expunge/signing-key.pem"

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
        if credential != SIGNING_KEY:
            assert path == f"/etc/expunge/secrets/{name}"
            assert name.upper() in KNOWN


@every_unit
def test_those_that_sign_are_given_the_key_and_no_others(unit: Path) -> None:
    signs = unit.stem in {"expunge-api", "expunge-dispatch", "expunge-interactive"}
    named = "EXPUNGE_SIGNING_KEY_FILE=%d/signing-key.pem" in values(unit, "Environment")
    given = SIGNING_KEY in values(unit, "LoadCredential")
    assert (named, given) == (signs, signs)
    # Processes of one user may look into each other, and so at what the others were given.
    assert (
        values(unit, "User") == values(unit, "Group") == ["expunge" if signs else "expunge-train"]
    )
    assert "SIGNING_KEY" not in ENVIRONMENT_FILE.read_text()


def test_on_one_machine_each_has_an_address_of_its_own_for_its_metrics() -> None:
    found = []
    for unit in UNITS:
        for value in values(unit, "Environment"):
            name, _, address = value.partition("=")
            if name == "EXPUNGE_METRICS_LISTEN":
                instances = range(100) if "@" in unit.name else [0]
                found += [address.replace("%i", str(each)) for each in instances]
    assert len(set(found)) == len(found) == 102
    for address in found:
        host, _, port = address.partition(":")
        assert host == "127.0.0.1"
        assert 1024 <= int(port) < 2**16


def test_the_environment_file_has_known_settings_and_no_secret() -> None:
    lines = ENVIRONMENT_FILE.read_text().splitlines()
    given = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert given <= KNOWN
    assert not any("SECRET" in key or "URL" in key for key in given)


@every_unit
def test_a_unit_is_confined_and_has_time_to_stop(unit: Path) -> None:
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


STUB = '#!/bin/sh\nprintf "%s %s store=%s\\n" "$(basename "$0")" "$*" "$EXPUNGE_OBJECT_STORE" >> "$CALLS"\n'
SIGNING_STUB = STUB + 'test "$1" != new-signing-key || (umask 077; echo key > "$2")\n'


def test_the_documented_commands_put_every_file_where_the_units_look_for_it(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "how-to" / "install.md").read_text()
    steps = guide[guide.index("## 2. On every machine") : guide.index("On each further one")]
    script = "\n".join(re.findall(r"^```\n(.*?)^```$", steps, re.MULTILINE | re.DOTALL))
    stubs = dict.fromkeys(("bin/useradd", "bin/python3.11", "bin/systemctl", "bin/curl"), STUB)
    stubs |= {"opt/expunge/bin/pip": STUB, "opt/expunge/bin/expunge": SIGNING_STUB}
    for name, text in stubs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    moved = re.sub(r"(?<![\w.])/(etc|opt)/", rf"{tmp_path}/\1/", script)
    calls = tmp_path / "calls"
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "CALLS": str(calls)}
    subprocess.run(["/bin/sh", "-euc", moved], cwd=ROOT, env=environment, check=True)

    done = calls.read_text()
    assert "expunge migrate store=s3://expunge\n" in done
    for unit in UNITS:
        assert (tmp_path / "etc/systemd/system" / unit.name).read_bytes() == unit.read_bytes()
        assert unit.stem in done.partition("systemctl enable")[2]
        assert f"nologin {values(unit, 'User')[0]} store" in done
        wanted = [each.partition(":")[2] for each in values(unit, "LoadCredential")]
        for path in wanted:
            file = tmp_path / path.removeprefix("/")
            assert file.stat().st_mode & 0o077 == 0
            assert file.stat().st_size > 0
        assert (tmp_path / values(unit, "EnvironmentFile")[0].removeprefix("/")).is_file()
