"""One way to write each JSON value (RFC 8785): what is hashed and signed. Never guesses at what has no such form."""

from typing import Any

import rfc8785

LARGEST_EXACT = 2**53 - 1
"""Whole numbers up to here are the same to every reader of JSON."""


class NotCanonical(ValueError):
    """The value has no canonical form that survives a database and every reader; the message says what is wrong."""


def canonical(value: Any) -> bytes:
    """The value as canonical JSON, UTF-8.

    Raises:
        NotCanonical: a number is not finite or too large to be exact, text holds what cannot be stored,
            a key is not text, or something in it is not JSON.
    """
    try:
        _check(value)
        return rfc8785.dumps(value)
    # A key with half a surrogate pair is not wrapped by the library.
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise NotCanonical(f"no canonical JSON: {error}") from error


def _check(value: Any) -> None:
    """Refuse what RFC 8785 allows and a `jsonb` column changes or refuses."""
    match value:
        case float() if not abs(value) <= LARGEST_EXACT:
            # Above it every float is a whole number, and comes back from the database as an int.
            raise NotCanonical(f"the number {value!r} is not finite or too large to be exact")
        case str() if "\0" in value:
            raise NotCanonical("text holds a NUL character")
        case dict():
            for key, member in value.items():
                if not isinstance(key, str):
                    raise NotCanonical(f"the key {key!r} is not text")
                _check(key)
                _check(member)
        case list() | tuple():
            for member in value:
                _check(member)
        case _:
            pass
