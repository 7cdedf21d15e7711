"""The file that an audit's pictures are drawn from: its bytes, and what it refuses."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.evidence.pictures.bundle import (
    WHICH,
    Bundle,
    BundleError,
    npy,
    pack,
    thumbnails,
    unpack,
)


def a_bundle(m: int = 3, *, side: int | None = 8) -> Bundle:
    rng = np.random.default_rng(m)
    before, after = (rng.uniform(-1, 1, (m, m)).astype(np.float32) for _ in range(2))
    matrices = {"before": before, "after": after, "gap": before - after}
    pixels = None if side is None else rng.integers(0, 256, (m, side, side, 3), dtype=np.uint8)
    keys = tuple(f"sample/{i:04d}" for i in range(m))
    return Bundle({"encoder": matrices, "projector": matrices}, pixels, keys)


def repacked(data: bytes, **changes: bytes | None) -> bytes:
    """The file with members replaced, added or (None) left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in {**members, **changes}.items():
            if content is not None:
                archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(("m", "side"), [(1, 32), (8, None), (64, 5)])
def test_what_was_packed_comes_back(m: int, side: int | None) -> None:
    bundle = a_bundle(m, side=side)
    read = unpack(pack(bundle))
    assert read.keys == bundle.keys
    assert read.levels == ("encoder", "projector")
    for level in bundle.levels:
        for which in WHICH:
            assert (read.matrices[level][which] == bundle.matrices[level][which]).all()
    if side is None:
        assert read.thumbnails is None
    else:
        assert read.thumbnails is not None
        assert (read.thumbnails == bundle.thumbnails).all()


def test_equal_bundles_give_equal_bytes_which_numpy_reads_too() -> None:
    data = pack(a_bundle())
    assert pack(a_bundle()) == data == pack(unpack(data))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert (arrays["encoder.gap"] == a_bundle().matrices["encoder"]["gap"]).all()


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_key_survives(keys: list[str]) -> None:
    zeros = np.zeros((len(keys), len(keys)), np.float32)
    bundle = Bundle({"encoder": dict.fromkeys(WHICH, zeros)}, None, tuple(keys))
    assert unpack(pack(bundle)).keys == tuple(keys)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"keys.json": None}, "list of strings"),
        ({"keys.json": b"[1, 2, 3]"}, "list of strings"),
        ({"keys.json": b"{"}, "not JSON"),
        ({"keys.json": b'["\\ud800", "b", "c"]'}, "half a character"),
        ({"keys.json": b"[" * 100_000}, "not JSON"),
        ({"keys.json": json.dumps(["a"]).encode()}, r"\(1, 1\) float32 is needed"),
        ({"encoder.gap.npy": None}, "encoder: before, after, gap are needed"),
        ({"encoder.more.npy": npy(np.zeros((3, 3), np.float32))}, "nothing else"),
        ({"encoder.gap.npy": npy(np.zeros((3, 3)))}, "float32 is needed, not .* float64"),
        ({"encoder.gap.npy": npy(np.full((3, 3), np.nan, np.float32))}, "not a finite number"),
        ({"encoder.gap.npy": npy(np.zeros((3, 3), ">f4"))}, "float32 is needed"),
        ({"encoder.gap.npy": npy(np.zeros((3, 3), np.float32))[:-1]}, "not an array of numbers"),
        ({"encoder.gap.npy": b"PK"}, "not an array of numbers"),
        ({"../x.gap.npy": npy(np.zeros((3, 3), np.float32))}, "not a level's name"),
        ({"readme": b""}, "does not belong"),
        ({"thumbnails.npy": npy(np.zeros((3, 8, 9, 3), np.uint8))}, "thumbnails: "),
        ({"thumbnails.npy": npy(np.zeros((2, 8, 8, 3), np.uint8))}, "thumbnails: "),
    ],
)
def test_a_file_that_is_no_bundle_is_refused_with_the_reason(
    changes: dict[str, bytes | None], complaint: str
) -> None:
    with pytest.raises(BundleError, match=complaint):
        unpack(repacked(pack(a_bundle()), **changes))


def test_pickled_objects_are_refused_unread() -> None:
    out = io.BytesIO()
    np.save(out, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match="not an array of numbers"):
        unpack(repacked(pack(a_bundle()), **{"encoder.gap.npy": out.getvalue()}))


def test_a_compressed_member_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("thumbnails.npy", bytes(10**6))
    with pytest.raises(BundleError, match="compressed"):
        unpack(out.getvalue())


def test_a_flipped_or_missing_byte_is_refused_or_changes_nothing() -> None:
    data = pack(a_bundle(2, side=2))
    original = unpack(data)
    rng = np.random.default_rng(0)
    for position in rng.choice(len(data), 300, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        try:
            read = unpack(bytes(damaged))
        except BundleError:
            continue
        assert read.keys == original.keys
        assert (read.matrices["encoder"]["gap"] == original.matrices["encoder"]["gap"]).all()
    for length in range(0, len(data), 97):
        with pytest.raises(BundleError):
            unpack(data[:length])


def test_parts_that_do_not_fit_together_make_no_bundle() -> None:
    bundle = a_bundle()
    with pytest.raises(BundleError, match="1 to 4,096 samples"):
        replace(bundle, keys=())
    with pytest.raises(BundleError, match="at least one level"):
        replace(bundle, matrices={})


def test_large_images_are_shrunk_to_block_means_and_small_ones_kept() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    small = thumbnails(images)
    assert small.shape == (2, 64, 64, 3)
    for image, shrunk in zip(images, small, strict=True):
        expected = image.reshape(64, 2, 64, 2, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(shrunk - expected).max() <= 1
    assert (thumbnails(images, side=200) == images).all()
