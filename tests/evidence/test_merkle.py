"""Merkle trees against the RFC's own recursive definitions, and against published roots."""

import hashlib
from itertools import combinations_with_replacement

import pytest

from expunge.evidence.merkle import (
    EMPTY_ROOT,
    BadProof,
    Frontier,
    Node,
    check_consistency,
    check_inclusion,
    consistency_cover,
    cover,
    inclusion_cover,
    leaf_hash,
    proof,
    root,
)

SIZES = range(34)

PUBLISHED_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
"""The test vectors of Certificate Transparency's own implementation."""
PUBLISHED_ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def leaves(count: int) -> list[bytes]:
    return [f"leaf {number}".encode() for number in range(count)]


def slow_root(data: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word by word."""
    if not data:
        return hashlib.sha256().digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = slow_split(len(data))
    return hashlib.sha256(b"\x01" + slow_root(data[:k]) + slow_root(data[k:])).digest()


def slow_path(m: int, data: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(data) == 1:
        return []
    k = slow_split(len(data))
    if m < k:
        return [*slow_path(m, data[:k]), slow_root(data[k:])]
    return [*slow_path(m - k, data[k:]), slow_root(data[:k])]


def slow_subproof(m: int, data: list[bytes], *, whole: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.2."""
    if m == len(data):
        return [] if whole else [slow_root(data)]
    k = slow_split(len(data))
    if m <= k:
        return [*slow_subproof(m, data[:k], whole=whole), slow_root(data[k:])]
    return [*slow_subproof(m - k, data[k:], whole=False), slow_root(data[:k])]


def slow_split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def stored(data: list[bytes]) -> dict[Node, bytes]:
    """All complete subtrees, as a growing tree leaves them behind."""
    frontier = Frontier(0, [])
    found = {}
    for position, each in enumerate(map(leaf_hash, data)):
        found[Node(0, position)] = each
        found.update(frontier.append(each))
    return found


NODES = stored(leaves(max(SIZES)))


@pytest.mark.parametrize(("size", "expected"), [*enumerate(PUBLISHED_ROOTS)])
def test_the_published_roots_come_out(size: int, expected: str) -> None:
    frontier = Frontier(0, [])
    for each in PUBLISHED_LEAVES[:size]:
        frontier.append(leaf_hash(each))
    assert frontier.root.hex() == expected == slow_root(PUBLISHED_LEAVES[:size]).hex()


def test_a_tree_that_grows_has_the_root_of_the_definition_at_every_size() -> None:
    frontier = Frontier(0, [])
    for size, each in enumerate(leaves(max(SIZES))):
        assert frontier.root == slow_root(leaves(size))
        frontier.append(leaf_hash(each))


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_that_was_put_away_grows_on(size: int) -> None:
    frontier = Frontier(size, [NODES[node] for node in cover(0, size)])
    assert frontier.root == slow_root(leaves(size))
    for each in leaves(size + 9)[size:]:
        frontier.append(leaf_hash(each))
    assert frontier.root == slow_root(leaves(size + 9))


def test_inclusion_proofs_are_those_of_the_definition_and_hold() -> None:
    for size in SIZES:
        data = leaves(size)
        for index in range(size):
            path = proof(inclusion_cover(index, size), NODES.__getitem__)
            assert path == slow_path(index, data)
            check_inclusion(leaf_hash(data[index]), index, size, path, slow_root(data))


def test_consistency_proofs_are_those_of_the_definition_and_hold() -> None:
    for first, second in combinations_with_replacement(SIZES[1:], 2):
        data = leaves(second)
        path = proof(consistency_cover(first, second), NODES.__getitem__)
        assert path == slow_subproof(first, data, whole=True)
        check_consistency(first, second, slow_root(data[:first]), slow_root(data), path)


def test_every_tree_continues_the_empty_one() -> None:
    check_consistency(0, 7, EMPTY_ROOT, slow_root(leaves(7)), [])
    with pytest.raises(BadProof, match="two different"):
        check_consistency(0, 7, bytes(32), slow_root(leaves(7)), [])


def test_a_changed_inclusion_proof_does_not_hold() -> None:
    size = 21
    data = leaves(size)
    for index in range(size):
        path = proof(inclusion_cover(index, size), NODES.__getitem__)
        right = (leaf_hash(data[index]), index, size, path, slow_root(data))
        wrong = [
            (leaf_hash(b"other"), *right[1:]),
            (right[0], (index + 1) % size, *right[2:]),
            (right[0], index, size, path[:-1], right[4]),
            (right[0], index, size, [*path, bytes(32)], right[4]),
            (right[0], index, size, path, bytes(32)),
            (right[0], size, size, path, right[4]),
            *((*right[:3], flipped(path, number), right[4]) for number in range(len(path))),
        ]
        for arguments in wrong:
            with pytest.raises(BadProof):
                check_inclusion(*arguments)


def test_a_changed_consistency_proof_does_not_hold() -> None:
    for first, second in combinations_with_replacement(range(1, 20), 2):
        path = proof(consistency_cover(first, second), NODES.__getitem__)
        older, newer = slow_root(leaves(first)), slow_root(leaves(second))
        wrong = [
            (bytes(32), newer, path),
            (older, bytes(32), path),
            (older, newer, [*path, bytes(32)]),
            *((older, newer, flipped(path, number)) for number in range(len(path))),
            *([(older, newer, path[:-1])] if path else []),
            *([(older, newer, [])] if path else []),
        ]
        for arguments in wrong:
            with pytest.raises(BadProof):
                check_consistency(first, second, *arguments)


def test_a_log_that_shrank_is_named_so() -> None:
    with pytest.raises(BadProof, match="tail was cut"):
        check_consistency(9, 8, slow_root(leaves(9)), slow_root(leaves(8)), [])


def test_a_rewritten_log_is_named_so() -> None:
    data = leaves(13)
    other = [b"rewritten", *data[1:]]
    path = proof(consistency_cover(6, 13), stored(other).__getitem__)
    with pytest.raises(BadProof, match="rewritten"):
        check_consistency(6, 13, slow_root(data[:6]), slow_root(other), path)


def test_a_proof_over_a_million_leaves_takes_few_subtrees() -> None:
    size = 10**6 - 1
    for index in (0, 1, 524_287, 524_288, size - 1):
        assert sum(map(len, inclusion_cover(index, size))) < 40
    assert sum(map(len, consistency_cover(777_777, size))) < 60
    assert root([bytes(32)] * len(cover(0, size)))


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_there_is_no_proof_for_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        inclusion_cover(index, size)
    with pytest.raises(ValueError, match="no consistency proof"):
        consistency_cover(size + 1, size)


def flipped(path: list[bytes], number: int) -> list[bytes]:
    return [
        bytes([each[0] ^ 1]) + each[1:] if place == number else each
        for place, each in enumerate(path)
    ]
