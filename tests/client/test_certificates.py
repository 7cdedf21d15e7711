"""`expunge verify`: a certificate checked on a machine that knows no service."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, settings
from hypothesis import given as over
from hypothesis import strategies as st
from rich.text import Text
from tests.evidence.papers import REPORT, WEIGHTS, Paper, new_signer, paper, rows, shown
from typer.testing import CliRunner

from expunge.client.cli import build_app
from expunge.evidence.canonical import canonical
from expunge.evidence.verification import rows_file


@pytest.fixture(scope="module")
def issued() -> Paper:
    return paper()


@pytest.fixture
def files(issued: Paper, tmp_path: Path) -> dict[str, Path]:
    """Everything that an owner has kept."""
    contents = {
        "certificate": issued.file(),
        "key": issued.chain[0].public_key.pem.encode(),
        "checkpoint": WEIGHTS["result"],
        "rows": rows_file(shown(rows())),
        "report": json.dumps({"id": "aud_1", "report": REPORT}).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


def verify(files: dict[str, Path], *more: str) -> Result:
    given = [
        part
        for name in ("key", "checkpoint", "rows", "report")
        if name in files
        for part in (f"--{name}", str(files[name]))
    ]
    runner = CliRunner(env={"COLUMNS": "200", "EXPUNGE_URL": "http://127.0.0.1:1"})
    return runner.invoke(build_app(), ["verify", str(files["certificate"]), *given, *more])


def states(result: Result) -> dict[str, str]:
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["ok"] is (result.exit_code == 0)
    return {link["name"]: link["status"] for link in answer["links"]}


def test_all_that_was_kept_is_checked_and_each_link_is_told(files: dict[str, Path]) -> None:
    result = verify(files)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 9
    assert all(line.startswith("OK") for line in lines)
    assert set(states(verify(files, "--json")).values()) == {"OK"}


def test_a_key_is_enough_and_none_is_too_little(files: dict[str, Path]) -> None:
    kept = {name: files[name] for name in ("certificate", "key")}
    assert set(states(verify(kept, "--json")).values()) == {"OK"}
    assert verify({"certificate": files["certificate"]}).exit_code == 2


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("certificate", "signature"),
        ("key", "key"),
        ("checkpoint", "checkpoint"),
        ("rows", "log rows"),
    ],
)
def test_whatever_was_changed_is_named_and_ends_with_status_1(
    files: dict[str, Path], name: str, link: str, issued: Paper
) -> None:
    changed = {
        "certificate": canonical(
            json.loads(issued.file())
            | {"signatures": json.loads(issued.file(edition=2))["signatures"]}
        ),
        "key": new_signer().public_key.pem.encode(),
        "checkpoint": WEIGHTS["result"][:-1] + b"!",
        "rows": files["rows"].read_bytes().replace(b'"number":3', b'"number":4'),
    }
    files[name].write_bytes(changed[name])
    result = verify(files)
    assert result.exit_code == 1
    assert "BROKEN" in result.stdout
    found = states(verify(files, "--json"))
    assert [each for each, state in found.items() if state == "BROKEN"] == [link]


LINKS = {
    "certificate": {"envelope", "statement", "signature"},
    "rows": {"log rows"},
    "checkpoint": {"checkpoint"},
    "report": {"audit"},
}
"""Which links may break when a byte of a file changes."""


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@over(st.sampled_from(sorted(LINKS)), st.integers(0, 10**6), st.integers(1, 255))
def test_whichever_byte_of_whichever_file_is_flipped_the_link_is_told(
    files: dict[str, Path], name: str, place: int, mask: int
) -> None:
    whole = files[name].read_bytes()
    damaged = bytearray(whole)
    damaged[place % len(whole)] ^= mask
    files[name].write_bytes(damaged)
    try:
        result = verify(files, "--json")
        links = json.loads(result.stdout)["links"]
        broken = {link["name"]: link["message"] for link in links if link["status"] == "BROKEN"}
        if name not in {"certificate", "checkpoint"} and same(whole, damaged):
            assert (result.exit_code, broken) == (0, {}), "other white space is no other content"
            return
        assert result.exit_code == 1
        assert LINKS[name] & set(broken)
        assert all(broken.values())
        if name != "certificate":
            assert set(broken) == LINKS[name], "the others hold"
    finally:
        files[name].write_bytes(whole)


def same(one: bytes, other: bytes) -> bool:
    """Whether both are the same JSON."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


OFFLINE = """
import sys

def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(refuse)
from expunge.cli import app
app()
"""


def test_a_public_key_is_enough_where_there_is_no_network(files: dict[str, Path]) -> None:
    """A process of its own, in which whatever asks for a socket is refused."""
    given = [part for name in LINKS if name != "certificate" for part in (f"--{name}", files[name])]
    command = [sys.executable, "-c", OFFLINE, "verify", files["certificate"], *given]
    done = subprocess.run(
        [*command, "--key", files["key"], "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {link["status"] for link in json.loads(done.stdout)["links"]} == {"OK"}
    asking = [sys.executable, "-c", OFFLINE, "signing-keys"]
    assert "socket." in subprocess.run(asking, capture_output=True, text=True, check=False).stderr


def test_files_that_are_something_else_are_answered_without_a_traceback(
    files: dict[str, Path], tmp_path: Path
) -> None:
    files["rows"].write_bytes(b"no rows")
    assert states(verify(files, "--json"))["log rows"] == "BROKEN"
    files["rows"].write_bytes(b"{}")
    assert states(verify(files, "--json"))["log rows"] == "BROKEN"
    files["certificate"].write_bytes(b"no certificate")
    assert states(verify(files, "--json")) == {"envelope": "BROKEN"}
    files["key"].write_bytes(b"no key")
    for broken in (files, files | {"certificate": tmp_path / "absent"}):
        result = verify(broken)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert "Error:" in result.stderr


@pytest.mark.parametrize("terminal", [False, True])
def test_a_narrow_terminal_shows_key_ids_complete(
    issued: Paper, files: dict[str, Path], *, terminal: bool
) -> None:
    env = {"COLUMNS": "60"} | ({"FORCE_COLOR": "1"} if terminal else {})
    given = ["verify", str(files["certificate"]), "--key", str(files["key"])]
    shown_text = CliRunner(env=env).invoke(build_app(), given).stdout
    text = Text.from_ansi(shown_text).plain
    assert issued.chain[0].key_id in "".join(text.split())
    assert "…" not in text
    assert (max(map(len, text.splitlines())) <= 60) is terminal
