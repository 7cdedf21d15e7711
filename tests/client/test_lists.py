"""Lists in a terminal are as wide as it is; what goes to a file or another program is not cut."""

import io
from datetime import UTC, datetime
from typing import cast

import pytest
import typer
from rich.console import Console
from rich.text import Text

from expunge.client.commands.session import Session, fail
from expunge.client.resources import Party
from expunge.client.sdk import Client

PARTIES = tuple(
    Party(
        id=f"pty_{number:032x}",
        name="somebody with a name that is longer than most " * 3,
        role="auditor",
        created_at=datetime.now(UTC),
    )
    for number in range(3)
)


def listed(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=60, force_terminal=terminal)
    session = Session(cast("Client", None), console, as_json=False)
    columns = [("id", lambda item: item.id), ("name", lambda item: item.name)]
    session.show_list(PARTIES, columns)
    session.show(PARTIES[0])
    session.show_table(PARTIES, lambda items: Text("\n".join(item.name for item in items)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_goes_to_a_file_has_ids_and_names_on_one_line() -> None:
    lines = listed(terminal=False).splitlines()
    for item in PARTIES:
        assert any(item.id in line and item.name.strip() in line for line in lines)
    assert sum(PARTIES[0].name.strip() in line for line in lines) == 7


def test_a_terminal_is_never_exceeded() -> None:
    lines = Text.from_ansi(listed(terminal=True)).plain.splitlines()
    assert max(map(len, lines)) <= 60


def test_a_command_to_copy_is_on_one_line_even_in_a_narrow_terminal() -> None:
    text = (
        "Next: expunge certificate req_1 --out [folder]/certificate.json --rows rows.json --renew"
    )
    for terminal in (False, True):
        out = Console(file=io.StringIO(), width=40, force_terminal=terminal)
        Session(cast("Client", None), out, as_json=False).hint(text)
        assert isinstance(out.file, io.StringIO)
        assert Text.from_ansi(out.file.getvalue()).plain.splitlines() == [text]


def test_what_went_wrong_is_one_line_where_no_terminal_breaks_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "nothing is done, and why that is so is said here: " + "expunge jobs show job_1 " * 9
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(typer.Exit):
        fail(message)
    assert capsys.readouterr().err == f"Error: {message}\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(typer.Exit):
        fail(message)
    assert max(map(len, Text.from_ansi(capsys.readouterr().err).plain.splitlines())) <= 80
