"""Files made to do harm are read rightly or refused with the one error of their format, in little memory."""

import io
import json
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from tests.formats.damage import spoiled, tried
from tests.formats.tars import DIGITS, archives, attributes, header, octal, padded, records

from expunge.formats.archives import ShardError
from expunge.formats.home_views import ViewError, index_views, read_views
from expunge.formats.shards import decode_image, index_shard, iter_samples, make_sample, write_shard
from expunge.formats.tensors import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    TensorFileError,
    read_header,
    write_release,
)

SIZE = 8
SAMPLE = f"dst_{'a' * 32}/a"
END = bytes(1024)
MEMORY_BYTES = 4 * 2**20
"""More than that no header may make the reader take, whatever it announces."""


def image(kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


PNG = image()
ENCODED = {"png": PNG, "jpg": image("JPEG"), "webp": image("WEBP")}
TOLD = json.dumps({"sample": SAMPLE, "crop": [0, 0, 4, 4], "flip": False}).encode()
MEMBER = header(b"a.png", octal(len(PNG)), b"0") + padded(PNG)


def read_as_shard(path: Path) -> None:
    """Read it in every way; what is accepted must be what stands in the file."""
    with suppress(ShardError):
        data = path.read_bytes()
        for sample in iter_samples(path):
            assert data[sample.offset : sample.offset + len(sample.image)] == sample.image
        index_shard(path, "shard.tar")


def read_as_views(path: Path) -> None:
    with suppress(ViewError):
        for of_sample in index_views(path, SIZE, max_samples=4, max_views=8):
            read_views(path, of_sample, SIZE)


class TestTars:
    @tried(150)
    @given(data=archives([PNG, TOLD, b"7"]))
    @example(data=attributes(b"9" * DIGITS + b" path=a\n") + MEMBER + END)
    @example(data=MEMBER + attributes(b"9" * DIGITS + b" path=a\n") + MEMBER + END)
    @example(data=attributes(records([(b"size", b"9" * DIGITS)])) + MEMBER + END)
    @example(data=attributes(records([(b"path", b"a\0.png")])) + MEMBER + END)
    @example(data=MEMBER + header(b"b.png", octal(-512), b"0") + END)
    @example(data=MEMBER + header(b"b.png", octal(2**88), b"0") + END)
    def test_headers_that_say_anything(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "file.tar"
        path.write_bytes(data)
        read_as_shard(path)
        read_as_views(path)

    @tried(100)
    @given(data=st.data())
    def test_spoiled_shards(self, tmp_path: Path, data: st.DataObject) -> None:
        path = tmp_path / "shard.tar"
        write_shard(path, [make_sample(key, "png", PNG, 1, "a cat") for key in ("a", "b")])
        path.write_bytes(data.draw(spoiled(path.read_bytes())))
        read_as_shard(path)
        read_as_views(path)

    @pytest.mark.parametrize("size", [2**33 - 1, 2**63, 2**88, -1, -(2**40)])
    @pytest.mark.parametrize("kind", [b"0", b"7", b"x", b"g", b"L", b"K", b"S", b"Z"])
    def test_what_is_announced_takes_no_memory(
        self, tmp_path: Path, size: int, kind: bytes
    ) -> None:
        path = tmp_path / "file.tar"
        path.write_bytes(MEMBER + header(b"b.png", octal(size), kind) + bytes(2**20) + END)
        tracemalloc.start()
        with pytest.raises(ShardError):
            index_shard(path, "file.tar")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_BYTES

    @tried(100)
    @given(
        told=st.fixed_dictionaries(
            {},
            optional={
                "sample": st.sampled_from(
                    [SAMPLE, "", "dst_", SAMPLE.upper(), f"{SAMPLE}\0", 1, None]
                ),
                "crop": st.lists(
                    st.integers(-1, 9) | st.sampled_from([2**63, -(2**63), 1.0, "1", None, True]),
                    max_size=5,
                )
                | st.just({"0": 1}),
                "flip": st.sampled_from([True, False, 0, "true", None, []]),
            },
        )
        | st.recursive(st.none() | st.text(max_size=3), st.lists, max_leaves=4),
        constants=st.sampled_from([b"", b"NaN", b"-Infinity", b"1e999", b"1" * 900, b"[" * 1000]),
    )
    def test_descriptions_of_views(self, tmp_path: Path, told: Any, constants: bytes) -> None:
        text = json.dumps(told).encode()
        if constants:
            text = text.replace(b"0", constants)
        path = tmp_path / "views.tar"
        path.write_bytes(
            b"".join(
                header(b"a__%d.%s" % (number, suffix), octal(len(content)), b"0") + padded(content)
                for number in range(2)
                for suffix, content in ((b"png", PNG), (b"json", text))
            )
            + END
        )
        read_as_views(path)


class TestImages:
    @tried(200)
    @given(data=st.data(), suffix=st.sampled_from(sorted(ENCODED)))
    def test_spoiled_images(self, data: st.DataObject, suffix: str) -> None:
        with suppress(ShardError):
            found = decode_image(data.draw(spoiled(ENCODED[suffix])), suffix)
            assert found.mode == "RGB"

    @pytest.mark.parametrize("extent", [2**13, 2**16, 2**31 - 1])
    def test_announced_pixels_take_no_memory(self, extent: int) -> None:
        chunk = b"IHDR" + struct.pack(">II", extent, extent) + PNG[24:29]
        data = PNG[:12] + chunk + struct.pack(">I", _crc(chunk)) + PNG[33:]
        tracemalloc.start()
        with pytest.raises(ShardError):
            decode_image(data, "png")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_BYTES

    def test_text_that_unpacks_to_much_is_refused_in_little_memory(self) -> None:
        chunk = b"zTXtcomment\0\0" + zlib.compress(bytes(64 * 2**20), 9)
        bomb = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", _crc(chunk))
        tracemalloc.start()
        with suppress(ShardError):
            decode_image(PNG[:33] + bomb + PNG[33:], "png")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_BYTES


def _crc(chunk: bytes) -> int:
    return zlib.crc32(chunk)


WORDS = st.sampled_from(
    [
        0,
        1,
        2,
        4,
        8,
        16,
        -1,
        2**31,
        2**53,
        2**62,
        2**63,
        2**64,
        10**400,
        0.0,
        True,
        None,
        "1",
        [],
        {},
    ]
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPE_BYTES, "O", "f4", "F4", None, 4, []]),
        "shape": st.lists(WORDS, max_size=4) | WORDS,
        "data_offsets": st.lists(WORDS, max_size=3) | WORDS,
        "strides": WORDS,
    },
)


class TestTensors:
    @tried(150)
    @given(
        tensors=st.dictionaries(
            st.sampled_from(["encoder.w", "encoder.b", "queue", "", "\0", "__metadata__"]),
            TENSOR,
            max_size=4,
        ),
        data=st.binary(max_size=24),
    )
    @example(
        tensors={
            "encoder.w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "x": {"y": []}}
        },
        data=bytes(8),
    )
    @example(
        tensors={"encoder.w": {"dtype": "U8", "shape": [2**62, 0], "data_offsets": [0, 0]}},
        data=b"",
    )
    def test_descriptions_of_tensors(self, tmp_path: Path, tensors: Any, data: bytes) -> None:
        text = json.dumps(tensors).encode()
        source = tmp_path / "file"
        source.write_bytes(struct.pack("<Q", len(text)) + text + data)
        read_as_tensors(source)

    @tried(150)
    @given(data=st.data())
    def test_spoiled_files(self, tmp_path: Path, data: st.DataObject) -> None:
        source = tmp_path / "file"
        arrays = {"encoder.w": np.ones((2, 3), np.float32), "queue": np.zeros(5, np.int64)}
        save_file(arrays, source, metadata={"format": "x"})
        source.write_bytes(data.draw(spoiled(source.read_bytes())))
        read_as_tensors(source)

    @pytest.mark.parametrize(
        "text",
        [
            b'{"encoder.w": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 0]}}',
            b'{"encoder.w": {"dtype": "U8", "shape": [-Infinity], "data_offsets": [0, 0]}}',
            b'{"encoder.w": {"dtype": "U8", "shape": ['
            + b"9" * DIGITS
            + b'], "data_offsets": [0, 0]}}',
            b'{"a":' * 100_000,
            b'{"__metadata__": {"a": "\\ud800"}, "encoder.w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
            b'{"encoder.\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
            '{"encoder.w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'.encode("utf-16"),
            b"\xff" * 100,
        ],
        ids=["NaN", "Infinity", "digits", "deep", "surrogate", "name", "UTF-16", "no text"],
    )
    def test_json_that_is_not_plain(self, tmp_path: Path, text: bytes) -> None:
        source = tmp_path / "file"
        source.write_bytes(struct.pack("<Q", len(text)) + text)
        read_as_tensors(source)

    @pytest.mark.parametrize("part", [b"[],", b"{},", b'"ab",', b"1.5,"])
    def test_a_header_of_many_small_things_takes_little_memory(
        self, tmp_path: Path, part: bytes
    ) -> None:
        text = b"[" + part * ((MAX_HEADER_BYTES - 2) // len(part))
        source = tmp_path / "file"
        source.write_bytes(struct.pack("<Q", len(text)) + text)
        tracemalloc.start()
        with pytest.raises(TensorFileError):
            read_header(source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * MAX_HEADER_BYTES

    @pytest.mark.parametrize(
        "shape",
        [
            [10**4000] * 3,
            [10**38] * 10_000,
            [0] * 300_000,
            [2**62, 4, 0],
            [2**63, 0],
        ],
        ids=["long", "many", "rank", "product", "extent"],
    )
    def test_shapes_beyond_all_measure_are_refused_at_once_in_few_words(
        self, tmp_path: Path, shape: list[int]
    ) -> None:
        tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        text = json.dumps({"encoder." + "w" * 10_000: tensor}).encode()
        source = tmp_path / "file"
        source.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(TensorFileError) as refused:
            read_header(source)
        assert len(str(refused.value)) < 300

    @pytest.mark.parametrize("offsets", [[0, 10**4000], [10**4000, 0]])
    def test_offsets_beyond_all_measure_are_refused_in_few_words(
        self, tmp_path: Path, offsets: list[int]
    ) -> None:
        tensor = {"dtype": "U8", "shape": [1], "data_offsets": offsets}
        text = json.dumps({"encoder.w": tensor}).encode()
        source = tmp_path / "file"
        source.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(TensorFileError) as refused:
            read_header(source)
        assert len(str(refused.value)) < 300

    def test_names_that_stand_twice_are_refused(self, tmp_path: Path) -> None:
        one = b'"encoder.w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
        text = b"{" + one + b", " + one + b"}"
        source = tmp_path / "file"
        source.write_bytes(struct.pack("<Q", len(text)) + text + b"x")
        with pytest.raises(TensorFileError):
            read_header(source)


def read_as_tensors(source: Path) -> None:
    """Read and release it; what is accepted the library must accept too, with the same tensors."""
    release = source.with_name("release")
    try:
        found = read_header(source)
        write_release(source, release)
    except TensorFileError:
        return
    for path, names in ((source, set(found.tensors)), (release, None)):
        with safe_open(path, framework="np") as file:
            assert names is None or set(file.keys()) == names
