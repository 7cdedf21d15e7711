"""Lists in a terminal are as wide as it is; what goes to a file or another program is not cut."""

import io
from datetime import UTC, datetime
from typing import cast

from rich.console import Console
from rich.text import Text

from expunge.client.commands.session import Session
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
