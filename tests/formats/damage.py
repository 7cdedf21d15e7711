"""Ways to spoil a file for property tests. EXPUNGE_EXAMPLES multiplies how many are tried."""

import os
import struct
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

BLOCK = 512
SCALE = int(os.environ.get("EXPUNGE_EXAMPLES", "1"))
NUMBERS = (0, 1, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
MAX_CHANGES = 4


def tried(count: int) -> settings:
    """So many examples of a property, times EXPUNGE_EXAMPLES."""
    return settings(
        max_examples=count * SCALE,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def spoiled(data: bytes) -> st.SearchStrategy[bytes]:
    """The file with up to MAX_CHANGES bytes, numbers or stretches changed, moved, doubled or cut off."""
    places = st.integers(0, len(data) - 1)
    short = st.integers(1, 2 * BLOCK)
    changes: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
        st.builds(_replaced, places, st.binary(min_size=1, max_size=4)),
        st.builds(_replaced, places, st.sampled_from(NUMBERS).map(lambda n: struct.pack("<Q", n))),
        st.builds(
            _replaced, places, st.sampled_from(NUMBERS).map(lambda n: struct.pack("<I", n % 2**32))
        ),
        st.builds(_cut, places, short),
        st.builds(_doubled, places, short),
        st.builds(_ended, places),
        st.builds(_flipped, places, st.integers(0, 7)),
    )
    return st.lists(changes, min_size=1, max_size=MAX_CHANGES).map(
        lambda chosen: _applied(data, chosen)
    )


def _applied(data: bytes, changes: list[Callable[[bytes], bytes]]) -> bytes:
    for change in changes:
        data = change(data)
    return data


def _replaced(place: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + new + data[place + len(new) :]


def _cut(place: int, length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + data[place + length :]


def _doubled(place: int, length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: place + length] + data[place:]


def _ended(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place]


def _flipped(place: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda data: (
        data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        if place < len(data)
        else data
    )
