"""Files of outputs made to do harm: read rightly or refused as no encoding, in little memory."""

import io
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.formats.damage import spoiled, tried

from expunge.evidence.encoding import BadEncoding, unpack

MEMORY_BYTES = 4 * 2**20
KEYS, DIGESTS = np.array(["a", "b"]), np.array(["0" * 64] * 2)
VIEWS = np.ones((2, 2, 4), np.float32) / 2
GOOD: dict[str, Any] = {
    "keys": KEYS, "sha256": DIGESTS, "encoder_before": VIEWS, "encoder_after": VIEWS,
    "seed": np.array(7),
}  # fmt: skip


def packed(arrays: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=True, **arrays)
    return out.getvalue()


def file_of(members: dict[str, bytes], **options: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(header: bytes, data: bytes = b"") -> bytes:
    """An array's file with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(packed(GOOD))) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


def test_a_good_file_is_read() -> None:
    assert unpack(packed(GOOD)).keys == ["a", "b"]


@tried(150)
@given(data=spoiled(packed(GOOD)))
def test_spoiled_files(data: bytes) -> None:
    with suppress(BadEncoding):
        unpack(data)


ARRAYS = st.sampled_from(
    [
        VIEWS, VIEWS[:, :1], VIEWS[:0], VIEWS[0], VIEWS.astype(np.float64), VIEWS * np.nan, VIEWS * np.inf,
        VIEWS * 0, KEYS, DIGESTS, np.array("a"), np.array(7), np.array(-1), np.array(2**63, np.uint64),
        np.array(1.5), np.array([]), np.array([None]), np.array([1, 2]), np.array([True, False]),
        np.array([b"a", b"b"]), np.array([["a"], ["b"]]), np.zeros(2, "f4,i4"), np.array(1 + 2j),
        np.zeros((0, 2, 4), np.float32), np.zeros((2, 2, 0), np.float32), np.array(["\ud800", "b"]),
    ]
)  # fmt: skip


@tried(150)
@given(
    arrays=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            (*GOOD, "projector_before", "projector_after", "image_text_before", "x"), ARRAYS
        ),
    )
)
@example(arrays={"keys": np.array("a")})
@example(arrays={"seed": np.array([1, 2])})
@example(arrays={"encoder_before": np.array(0, np.float32)})
def test_arrays_of_any_kind(arrays: dict[str, Any]) -> None:
    with suppress(BadEncoding):
        found = unpack(packed(GOOD | arrays))
        assert np.isfinite(found.levels["encoder"].before.views).all()


@pytest.mark.parametrize(
    "content",
    [
        npy(header("(2, 2, 1000000000000)")),
        npy(header("(9223372036854775807, 2, 4)")),
        npy(header("(2, 2, 100000000000000000000000)")),
        npy(header("(-1, 2, 4)"), VIEWS.tobytes()),
        npy(header("(2, 2, 1e3)")),
        npy(header("(2, 2, 4)", "'|O'"), b"\x80\x04N."),
        npy(header("(2, 2, 4)", "'<U1000000000'")),
        npy(header("(2, 2, 4)", "[('a', '<f4')]"), VIEWS.tobytes()),
        npy(header("(2, 2, 4)", "'<f4'")[:20]),
        npy(b"(" * 9_000),
        npy(b"-" * 9_000 + b"1"),
        npy(b"\xff" * 100),
        npy(b"[" * 60_000),
        b"",
        b"\x93NUMPY\x09\x00" + bytes(20),
        b"\x80\x04N.",
    ],
    ids=range(16),
)
def test_an_array_that_lies_takes_no_memory(content: bytes) -> None:
    data = file_of(members() | {"encoder_after": content})
    tracemalloc.start()
    with pytest.raises(BadEncoding):
        unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_BYTES


def test_what_unpacks_to_much_takes_no_memory() -> None:
    zeros = npy(header(f"(2, 2, {2**20})"), bytes(2**24))
    data = file_of(members() | {"encoder_after": zeros}, compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(BadEncoding, match="compressed"):
        unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_BYTES


def test_an_array_that_is_there_twice_is_refused() -> None:
    out = io.BytesIO(packed(GOOD))
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("seed.npy", members()["seed"])
    with pytest.raises(BadEncoding, match="twice"):
        unpack(out.getvalue())
