"""What is hashed is written in one way, and what has no such way is refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.evidence.canonical import LARGEST_EXACT, NotCanonical, canonical

EXACT = st.integers(-LARGEST_EXACT, LARGEST_EXACT) | st.floats(
    -LARGEST_EXACT, LARGEST_EXACT, allow_nan=False
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | EXACT | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_was_written_and_read_is_written_the_same_again(value: Any) -> None:
    written = canonical(value)
    assert json.loads(written) == value
    assert canonical(json.loads(written)) == written


def test_members_are_sorted_and_nothing_is_padded() -> None:
    assert (
        canonical({"b": [1.0, 2.5, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,true]}'.encode()
    )


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (-math.inf, "not finite"),
        (2**53, "2[*][*]53|exceeds|9007199254740992"),
        (1e22, "too large"),
        ("\0", "NUL"),
        ("\ud800", "UTF-8"),
        ({"\ud800": 1}, "surrogates"),
        ({1: 2}, "not text"),
        ({"a": [{"b": object()}]}, "canonical"),
        ({"a\0": 1}, "NUL"),
        (b"bytes", "canonical"),
    ],
)
def test_what_would_not_come_back_as_it_was_is_refused(value: Any, why: str) -> None:
    with pytest.raises(NotCanonical, match=why):
        canonical({"value": value})
    with pytest.raises(NotCanonical, match=why):
        canonical(value)


def test_what_is_nested_too_deep_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(NotCanonical):
        canonical(value)
