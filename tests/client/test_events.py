"""The event stream's lines become typed events."""

import json

import pytest

from expunge.client.calls import parse_event
from expunge.client.events import ServerEvent, read_events
from expunge.client.resources import End, Progress, StateChange

PROGRESS = {
    "phase": "unlearn",
    "epoch": 2,
    "epochs": 10,
    "step": 12,
    "steps": 60,
    "losses": {"total": 1.5},
    "images_per_second": 900.0,
    "eta_seconds": 12.0,
}


def test_fields_comments_and_ids_are_read_as_the_standard_says() -> None:
    lines = [
        ": a comment",
        "event: state",
        'data: {"state":',
        'data: "running"}',
        "id: 7.1",
        "",
        "data:no space",
        "",
        "event: left over",
        "",
        "id",
        "data: after an empty id",
        "",
        "data: cut off",
    ]
    assert list(read_events(lines)) == [
        ServerEvent("state", '{"state":\n"running"}', "7.1"),
        ServerEvent("message", "no space", "7.1"),
        ServerEvent("message", "after an empty id", ""),
    ]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("state", {"state": "running", "reason": None, "at": "2026-01-01T00:00:00Z"}, StateChange),
        ("progress", PROGRESS, Progress),
        ("end", {"state": "completed"}, End),
    ],
)
def test_events_are_typed(name: str, data: dict[str, object], kind: type) -> None:
    assert isinstance(parse_event(ServerEvent(name, json.dumps(data), None)), kind)


def test_kinds_of_a_newer_service_are_left_out() -> None:
    assert parse_event(ServerEvent("weather", "{}", None)) is None
