"""Which scope of a key each call needs. Knows nothing of parties: what their roles may do is said at the routes."""

from typing import cast

from fastapi import Request
from fastapi.routing import APIRoute

from expunge.registry.errors import Forbidden
from expunge.registry.tables import ApiKey, Scope

SAFE_METHODS = ("GET", "HEAD")
READING = frozenset({"estimate_removal"})
"""Calls that change nothing though they are no GET."""
AUDITING = frozenset({"create_audit", "create_encoding", "create_encoding_of_views"})
ABOUT_KEYS = frozenset({"create_party", "create_key", "list_keys", "rotate_key", "revoke_key"})


class ScopeMissing(Forbidden):
    """The key's party may make this call, but not with this key."""

    slug, title = "scope-missing", "Not within the key's scopes"


def needed(method: str, name: str) -> Scope:
    """The scope that a call of the route of this name needs: whatever is not listed here writes, unless it is a GET."""
    if name in ABOUT_KEYS:
        return Scope.KEYS
    if name in AUDITING:
        return Scope.AUDIT
    return Scope.READ if method in SAFE_METHODS or name in READING else Scope.WRITE


def needed_by(request: Request) -> Scope:
    """The scope that this call needs."""
    return needed(request.method, cast("APIRoute", request.scope["route"]).name)


def require(key: ApiKey, scope: Scope) -> None:
    """Refuse a key that is not for such calls.

    Raises:
        ScopeMissing: it is held to other scopes.
    """
    if key.scopes is not None and scope not in key.scopes:
        raise ScopeMissing(
            f"This call needs a key with the scope {scope}; yours has {', '.join(key.scopes)}.",
            needed=scope,
            scopes=key.scopes,
        )
