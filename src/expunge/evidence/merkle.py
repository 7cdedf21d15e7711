"""Merkle trees of RFC 6962 (and 9162, section 2): roots, inclusion and consistency proofs. Never holds all leaves.

Hashes are 32 bytes (SHA-256). A complete subtree is a `Node`; every other subtree that a proof needs is
put together from at most log2(size) complete ones, so that whoever stores those answers any proof.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
LEAF_PREFIX = b"\x00"
NODE_PREFIX = b"\x01"


class BadProof(ValueError):
    """A proof does not show what it should; the message says what broke."""


class Node(NamedTuple):
    """The complete subtree over the leaves `number * 2**level` to `(number + 1) * 2**level - 1`."""

    level: int
    number: int


Hashes = Callable[[Node], bytes]
"""Looks up the hash of a complete subtree; level 0 are the leaf hashes."""


def leaf_hash(content: bytes) -> bytes:
    """RFC 6962, section 2.1: the hash of one leaf."""
    return hashlib.sha256(LEAF_PREFIX + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962, section 2.1: the hash of an inner node."""
    return hashlib.sha256(NODE_PREFIX + left + right).digest()


def cover(start: int, end: int) -> list[Node]:
    """The fewest complete subtrees, left to right, of a subtree over the leaves `start` to `end - 1`."""
    nodes = []
    while start < end:
        level = (end - start).bit_length() - 1
        nodes.append(Node(level, start >> level))
        start += 1 << level
    return nodes


def root(peaks: Sequence[bytes]) -> bytes:
    """The hash of a tree from those of its complete subtrees, `cover(0, size)`."""
    if not peaks:
        return EMPTY_ROOT
    *others, found = peaks
    for left in reversed(others):
        found = node_hash(left, found)
    return found


class Frontier:
    """The right edge of a growing tree: enough to append to it and to know its root."""

    def __init__(self, size: int, peaks: Iterable[bytes]) -> None:
        """`peaks` are the hashes of `cover(0, size)`."""
        self.size = size
        self._peaks = list(peaks)

    @property
    def root(self) -> bytes:
        """RFC 6962's tree hash of the leaves so far."""
        return root(self._peaks)

    def append(self, leaf: bytes) -> list[tuple[Node, bytes]]:
        """Add a leaf hash; the inner nodes that it completes, lowest first."""
        completed = []
        found, level, number = leaf, 0, self.size
        while number & 1:
            found = node_hash(self._peaks.pop(), found)
            level, number = level + 1, number >> 1
            completed.append((Node(level, number), found))
        self._peaks.append(found)
        self.size += 1
        return completed


def inclusion_cover(index: int, size: int) -> list[list[Node]]:
    """What the inclusion proof of a leaf consists of: per hash, leaf to root, the nodes to put it together from.

    Raises:
        ValueError: a tree of that size has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path: list[list[Node]] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(cover(middle, end))
            end = middle
        else:
            path.append(cover(start, middle))
            start = middle
    return path[::-1]


def consistency_cover(first: int, second: int) -> list[list[Node]]:
    """As `inclusion_cover`, of the proof that a tree of `second` leaves begins with one of `first` leaves.

    Raises:
        ValueError: not 0 < first <= second.
    """
    if not 0 < first <= second:
        raise ValueError(f"there is no consistency proof from {first} to {second} leaves")
    path: list[list[Node]] = []
    start, end, whole = 0, second, True
    while first < end:
        middle = start + _split(end - start)
        if first <= middle:
            path.append(cover(middle, end))
            end = middle
        else:
            path.append(cover(start, middle))
            start, whole = middle, False
    # The older tree itself is known to whoever checks.
    if not whole:
        path.append(cover(start, end))
    return path[::-1]


def proof(parts: Iterable[Sequence[Node]], hashes: Hashes) -> list[bytes]:
    """The hashes of a proof from its cover."""
    return [root([hashes(node) for node in nodes]) for nodes in parts]


def check_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], expected: bytes
) -> None:
    """RFC 9162, section 2.1.3.2: a leaf hash is at this place of the tree with that root.

    Raises:
        BadProof: it is not, or the proof is of another shape.
    """
    if not 0 <= index < size:
        raise BadProof(f"a tree of {size} leaves has no leaf {index}")
    found = leaf
    for sibling, is_left in _climb(index, size - 1, path, "inclusion"):
        found = node_hash(sibling, found) if is_left else node_hash(found, sibling)
    if found != expected:
        raise BadProof(f"leaf {index} is not part of the tree of {size} leaves with this root")


def check_consistency(
    first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]
) -> None:
    """RFC 9162, section 2.1.4.2: the tree of `second` leaves begins with the whole tree of `first` leaves.

    Raises:
        BadProof: it does not, or the proof is of another shape.
    """
    if first > second:
        raise BadProof(f"a log of {second} leaves cannot continue one of {first}: its tail was cut")
    if first in (0, second):
        if path:
            raise BadProof("the consistency proof is too long")
        if first_root != (second_root if first else EMPTY_ROOT):
            raise BadProof(f"there are two different logs of {first} leaves")
        return
    hashes = path if first & (first - 1) else [first_root, *path]
    if not hashes:
        raise BadProof("the consistency proof is too short")
    known, *rest = hashes
    # The older tree's last leaf is under the same subtrees as its last complete subtree.
    above = ((first - 1) ^ first).bit_length() - 1
    older = newer = known
    for sibling, is_left in _climb(
        (first - 1) >> above, (second - 1) >> above, rest, "consistency"
    ):
        if is_left:
            older, newer = node_hash(sibling, older), node_hash(sibling, newer)
        else:
            newer = node_hash(newer, sibling)
    if older != first_root or newer != second_root:
        raise BadProof(
            f"the log of {second} leaves does not begin with that of {first}: it was rewritten"
        )


def _climb(place: int, last: int, path: Sequence[bytes], kind: str) -> Iterator[tuple[bytes, bool]]:
    """The siblings from a place of a level with `last` up to the root, and whether each is on the left."""
    for sibling in path:
        if last == 0:
            raise BadProof(f"the {kind} proof is too long")
        is_left = bool(place & 1) or place == last
        yield sibling, is_left
        if is_left:
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        place, last = place >> 1, last >> 1
    if last:
        raise BadProof(f"the {kind} proof is too short")


def _split(size: int) -> int:
    """The largest power of two below `size`: where RFC 6962 divides a tree."""
    return 1 << ((size - 1).bit_length() - 1)
