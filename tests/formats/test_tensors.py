"""The outside of checkpoint files: good ones are read as safetensors reads them, hostile ones refused without harm."""

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from expunge.formats.tensors import (
    MAX_HEADER_BYTES,
    TensorFileError,
    is_release,
    read_header,
    write_release,
)

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(path: Path, header: Any, data: bytes = b"") -> Path:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def good(path: Path) -> Path:
    tensors = {
        "encoder.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "encoder.count": np.array(7, dtype=np.int64),
        "projector.weight": np.ones((1, 4), dtype=np.float16),
        "queue": np.zeros((5, 2), dtype=np.float32),
        "key_encoder.weight": np.full((2, 3), 9, dtype=np.float32),
        "encoder_spare": np.zeros(0, dtype=np.uint8),
    }
    save_file(tensors, path, metadata={"format": "x", "spec": "{}"})
    return path


def test_a_good_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    header = read_header(good(tmp_path / "file"))
    assert header.metadata == {"format": "x", "spec": "{}"}
    assert header.tensors["encoder.weight"]["shape"] == [2, 3]
    assert header.tensors["queue"]["dtype"] == "F32"


def test_a_release_holds_encoder_and_projector_unchanged_and_nothing_else(tmp_path: Path) -> None:
    source = good(tmp_path / "file")
    write_release(source, tmp_path / "release")
    whole, released = load_file(source), load_file(tmp_path / "release")
    assert sorted(released) == ["encoder.count", "encoder.weight", "projector.weight"]
    for name, tensor in released.items():
        np.testing.assert_array_equal(tensor, whole[name])
    assert read_header(tmp_path / "release").metadata == {"format": "x", "spec": "{}"}


def test_a_release_depends_on_the_source_only(tmp_path: Path) -> None:
    source = good(tmp_path / "file")
    write_release(source, tmp_path / "one")
    write_release(source, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_release_is_its_own_release(tmp_path: Path) -> None:
    """Also a whole checkpoint of which everything may leave, so that it is stored once."""
    source = good(tmp_path / "file")
    assert not is_release(source)
    write_release(source, tmp_path / "release")
    assert is_release(tmp_path / "release")
    write_release(tmp_path / "release", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "release").read_bytes()


def test_a_file_of_which_nothing_may_leave_has_no_release(tmp_path: Path) -> None:
    save_file({"queue": np.zeros(3, dtype=np.float32)}, tmp_path / "file")
    with pytest.raises(TensorFileError, match="no tensor named"):
        write_release(tmp_path / "file", tmp_path / "release")


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ([], b"", "not a JSON object"),
        ({}, b"", "1 to 20,000 tensors"),
        ({"__metadata__": {"a": 1}, "w": FLOAT}, bytes(8), "not a map of strings"),
        ({"__metadata__": [], "w": FLOAT}, bytes(8), "not a map of strings"),
        ({"w": FLOAT}, bytes(7), "the file has 7"),
        ({"w": FLOAT}, bytes(9), "the file has 9"),
        ({"w": FLOAT | {"shape": [3]}}, bytes(8), "its shape says 12"),
        ({"w": FLOAT | {"shape": [-2]}}, bytes(8), "not a whole number"),
        ({"w": FLOAT | {"shape": [2.0]}}, bytes(8), "not a whole number"),
        ({"w": FLOAT | {"shape": [True, 2]}}, bytes(8), "not a whole number"),
        ({"w": FLOAT | {"shape": None}}, bytes(8), "not described"),
        ({"w": FLOAT | {"dtype": "O"}}, bytes(8), "not described"),
        ({"w": FLOAT | {"dtype": []}}, bytes(8), "not described"),
        ({"w": FLOAT | {"data_offsets": [0, 8, 9]}}, bytes(8), "not described"),
        ({"w": FLOAT | {"data_offsets": [8, 0]}}, bytes(8), "has -8 bytes"),
        ({"w": 7}, bytes(8), "not described"),
        ({"v": FLOAT, "w": FLOAT}, bytes(8), "overlap or leave a gap"),
        ({"w": FLOAT | {"data_offsets": [4, 12]}}, bytes(12), "overlap or leave a gap"),
        ({"w": FLOAT | {"shape": [2**62, 2**62]}}, bytes(8), "no file holds"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    with pytest.raises(TensorFileError, match=said):
        read_header(file_of(tmp_path / "file", header, data))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, MAX_HEADER_BYTES + 1, 100])
def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    (tmp_path / "file").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(TensorFileError, match="longer than the file"):
        read_header(tmp_path / "file")


def test_deep_json_is_refused(tmp_path: Path) -> None:
    encoded = b"[" * 200_000
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    with pytest.raises(TensorFileError, match="not JSON"):
        read_header(tmp_path / "file")


@QUICK
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(TensorFileError):
        read_header(tmp_path / "file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@QUICK
@given(header=json_values, data=st.binary(max_size=16))
def test_any_header_is_read_or_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    with suppress(TensorFileError):
        read_header(file_of(tmp_path / "file", header, data))


@QUICK
@given(
    changes=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(good(tmp_path / "file").read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    (tmp_path / "file").write_bytes(data)
    with suppress(TensorFileError):
        write_release(tmp_path / "file", tmp_path / "release")
