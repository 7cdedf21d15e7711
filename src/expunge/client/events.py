"""Server-sent events: lines in, events out (WHATWG HTML, section 9.2.6). Opens no connection."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerEvent:
    """One event; `id` is None when the stream has not sent one yet."""

    name: str
    data: str
    id: str | None


def read_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Parse the lines (without line ends) of a stream; an event cut off at the end is dropped."""
    name, data, last_id = "", list[str](), None
    for line in lines:
        if not line:
            if data:
                yield ServerEvent(name or "message", "\n".join(data), last_id)
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            last_id = value
