"""What can go wrong between client and service, as exceptions whose message a person can act on."""

import json
from collections.abc import Mapping
from typing import Any

_MEMBERS = frozenset({"type", "title", "status", "detail", "instance"})
_SHOWN_BODY_CHARS = 200
_BOUNDS = {
    "expected": "",
    "ge": "at least",
    "gt": "more than",
    "le": "at most",
    "lt": "less than",
    "min_length": "length at least",
    "max_length": "length at most",
    "multiple_of": "multiple of",
}


class ProblemError(Exception):
    """The service refused: its problem document (RFC 9457) as attributes."""

    def __init__(
        self, kind: str, status: int, title: str, detail: str, extensions: Mapping[str, Any]
    ) -> None:
        super().__init__(kind, status, title, detail, extensions)
        self.type = kind
        """Stable identifier, e.g. `urn:expunge:problem:not-found`."""
        self.status = status
        self.title = title
        self.detail = detail
        self.extensions = dict(extensions)
        """Members beside the standard ones, e.g. `allowed` or `errors`."""

    def __str__(self) -> str:
        parts = [f"{self.detail or self.title} (HTTP {self.status})"]
        errors = self.extensions.get("errors") or []
        parts += [
            _described(error)
            for error in errors
            if isinstance(error, Mapping) and not _is_said(error, self.detail)
        ]
        allowed = self.extensions.get("allowed")
        if allowed and _listed(allowed) not in parts[0]:
            parts.append(f"allowed: {_listed(allowed)}")
        return "; ".join(parts)


class LostSecretError(Exception):
    """A key was made, but the answer with its secret was lost: the service cannot show it again."""


class UnreachableError(Exception):
    """No usable answer came from the service; the message names the address that was tried."""


class UnfinishedError(Exception):
    """The work still runs after the time the caller was ready to wait."""


class DoubtError(Exception):
    """What the service answered does not hold together; the message says what does not fit what."""


def problem_of(status: int, content_type: str, body: bytes) -> ProblemError:
    """The exception for an error answer; a body that is no problem document is quoted shortly."""
    try:
        document = json.loads(body) if "json" in content_type else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        text = body[:_SHOWN_BODY_CHARS].decode(errors="replace").strip()
        return ProblemError("about:blank", status, "Error answer", text, {})
    return ProblemError(
        kind=str(document.get("type", "about:blank")),
        status=status,
        title=str(document.get("title", "Error answer")),
        detail=str(document.get("detail") or ""),
        extensions={key: value for key, value in document.items() if key not in _MEMBERS},
    )


def _is_said(error: Mapping[str, Any], detail: str) -> bool:
    """Whether the detail tells all of it."""
    told = [error.get("message") or "", *_values(error.get("allowed"))]
    return all(_shown(each) in detail for each in told)


def _described(error: Mapping[str, Any]) -> str:
    where = str(error.get("pointer", "")).lstrip("#")
    text = f"{where}: {error.get('message', '')}" if where else str(error.get("message", ""))
    allowed = error.get("allowed")
    if not all(_shown(each) in text for each in _values(allowed)):
        text += f" (allowed: {_listed(allowed)})"
    return text


def _listed(allowed: Any) -> str:
    if isinstance(allowed, Mapping):
        bounds = (f"{_BOUNDS.get(name, name)} {_shown(value)}" for name, value in allowed.items())
        return ", ".join(bound.strip() for bound in bounds)
    return ", ".join(map(_shown, _values(allowed)))


def _values(allowed: Any) -> list[Any]:
    match allowed:
        case None:
            return []
        case Mapping():
            return list(allowed.values())
        case list():
            return allowed
        case _:
            return [allowed]


def _shown(value: Any) -> str:
    """As the service's sentences have it: a whole number has no point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
