"""WebDataset shards: what is written is read, what breaks a rule is refused whole, whatever the bytes."""

import io
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from expunge.formats.archives import MAX_NAME_CHARS, ShardError
from expunge.formats.shards import (
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    Sample,
    check_structure,
    decode_image,
    index_shard,
    iter_samples,
    make_sample,
    write_shard,
)

QUICK = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def encoded(
    kind: str = "PNG", size: tuple[int, int] = (8, 6), mode: str = "RGB", **options: Any
) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 100).save(out, kind, **options)
    return out.getvalue()


PNG = encoded()


def tar_of(
    path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, **options: Any
) -> Path:
    with tarfile.open(path, **({"mode": "w", "format": tarfile.USTAR_FORMAT} | options)) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            archive.addfile(member, io.BytesIO(data))
    return path


def refusal(path: Path) -> ShardError:
    with pytest.raises(ShardError) as caught:
        check_structure(path)
    return caught.value


keys = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}(/[A-Za-z0-9_-]{1,10})?", fullmatch=True)
captions = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)
samples = st.lists(
    st.builds(
        make_sample,
        keys,
        st.sampled_from(["jpg", "png", "webp"]),
        st.binary(min_size=1, max_size=2_000),
        st.none() | st.integers(0, 2**31 - 1),
        st.none() | captions,
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda sample: sample.key,
)


@QUICK
@given(written=samples)
def test_what_is_written_is_read(tmp_path: Path, written: list[Sample]) -> None:
    path = tmp_path / "shard.tar"
    assert write_shard(path, written) == len(written) == check_structure(path)
    found = list(iter_samples(path))
    data = path.read_bytes()
    for one, other in zip(found, written, strict=True):
        assert data[one.offset : one.offset + len(one.image)] == other.image
        assert (one.key, one.suffix, one.sha256) == (other.key, other.suffix, other.sha256)
        assert (one.label, one.caption) == (other.label, other.caption)


@QUICK
@given(written=samples)
def test_the_bytes_depend_on_the_samples_only(tmp_path: Path, written: list[Sample]) -> None:
    write_shard(tmp_path / "one", written)
    write_shard(tmp_path / "two", written)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@QUICK
@given(data=st.binary(max_size=3_000))
@example(data=bytes(1024))
@example(data=bytes(512))
def test_any_bytes_are_refused_cleanly(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "shard.tar").write_bytes(data)
    with pytest.raises(ShardError):
        check_structure(tmp_path / "shard.tar")


@QUICK
@given(
    changes=st.lists(st.tuples(st.integers(0, 4_095), st.integers(0, 255)), min_size=1, max_size=5)
)
def test_a_damaged_shard_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = tar_of(tmp_path / "shard.tar", ("a.png", PNG), ("a.cls", b"1"), ("b.png", PNG))
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    with suppress(ShardError):
        index_shard(path, "shard.tar")


@QUICK
@given(length=st.integers(0, 10_239))
def test_a_shard_cut_anywhere_is_refused_or_whole(tmp_path: Path, length: int) -> None:
    path = tar_of(tmp_path / "shard.tar", ("a.png", PNG), ("b.png", PNG))
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    end_of_data = -(-len(whole.rstrip(b"\0")) // 512) * 512
    if length >= end_of_data + 1024:
        assert check_structure(path) == 2
    else:
        assert refusal(path).code in ("truncated", "not-a-tar", "empty")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../a.png", "unsafe-name"),
        ("a/../../b.png", "unsafe-name"),
        ("/a.png", "unsafe-name"),
        ("./a.png", "unsafe-name"),
        ("a//b.png", "unsafe-name"),
        (".hidden.png", "unsafe-name"),
        ("a b.png", "unsafe-name"),
        ("a\\b.png", "unsafe-name"),
        ("é.png", "unsafe-name"),
        ("x" * MAX_NAME_CHARS + ".png", "unsafe-name"),
        ("a.pkl", "unknown-suffix"),
        ("a.pt", "unknown-suffix"),
        ("a.PNG", "unknown-suffix"),
        ("a.tar.png", "unknown-suffix"),
        ("a", "unknown-suffix"),
    ],
)
def test_a_member_name_that_is_not_plain_is_refused(tmp_path: Path, name: str, code: str) -> None:
    path = tar_of(tmp_path / "shard.tar", (name, PNG), format=tarfile.GNU_FORMAT)
    error = refusal(path)
    assert error.code == code
    assert repr(name[:40])[1:-1] in str(error)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE],
)
def test_only_plain_files_are_members(tmp_path: Path, kind: bytes) -> None:
    assert refusal(tar_of(tmp_path / "shard.tar", ("a.png", b""), kind=kind)).code == "not-a-file"


def header(name: str, size: int, kind: bytes) -> bytes:
    """One tar header as is, whatever it says."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(*records: tuple[str, str]) -> bytes:
    """Attributes (pax) of the member that follows."""
    content = b""
    for name, value in records:
        record = f" {name}={value}\n".encode()
        length = len(record) + 2
        content += str(length).encode() + record if length < 100 else b""
    return header("x", len(content), b"x") + padded(content)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


MEMBER = header("a.png", len(PNG), b"0") + padded(PNG)
END = bytes(1024)
GIANT = 2**20


def test_attributes_that_usual_writers_add_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(extension(("mtime", "1700000000.5")) + MEMBER + END)
    assert check_structure(path) == 1


HOSTILE = {
    "attributes without end": (header("x", GIANT, b"x") + bytes(GIANT) + MEMBER + END, "too-large"),
    "common attributes without end": (
        header("x", GIANT, b"g") + bytes(GIANT) + MEMBER + END,
        "too-large",
    ),
    "long name without end": (header("x", GIANT, b"L") + b"a" * GIANT + MEMBER + END, "too-large"),
    "long link without end": (header("x", GIANT, b"K") + b"a" * GIANT + MEMBER + END, "too-large"),
    "nested at the start": (
        extension(("mtime", "1700000000.5")) * 5_000 + MEMBER + END,
        "not-a-tar",
    ),
    "nested later": (MEMBER + extension(("mtime", "1700000000.5")) * 5_000 + END, "not-a-tar"),
    "sparse map in the data": (
        extension(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")) + MEMBER,
        "not-a-file",
    ),
    "sparse map in the attributes": (
        extension(("GNU.sparse.map", "a,b")) + MEMBER + END,
        "not-a-file",
    ),
    "old sparse": (header("a.png", 100, b"S") + bytes(512) + END, "not-a-file"),
    "path behind the name": (extension(("path", "../../a.png")) + MEMBER + END, "unsafe-name"),
    "negative size": (extension(("size", "-1024")) + MEMBER + END, "too-large"),
    "size of minus one": (extension(("size", "-1")) + MEMBER + END, "too-large"),
    "size of minus five": (extension(("size", "-5")) + MEMBER + END, "too-large"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_extensions_made_to_exhaust_or_deceive_the_reader_are_refused(
    tmp_path: Path, case: str
) -> None:
    data, code = HOSTILE[case]
    path = tmp_path / "shard.tar"
    path.write_bytes(data)
    assert refusal(path).code == code


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_archive_is_refused(tmp_path: Path, mode: str) -> None:
    path = tar_of(tmp_path / "shard.tar", ("a.png", PNG), mode=mode)
    assert refusal(path).code == "not-a-tar"


def test_what_follows_a_damaged_header_is_not_overlooked(tmp_path: Path) -> None:
    """tarfile alone stops there and says nothing."""
    path = tar_of(tmp_path / "shard.tar", ("a.png", PNG), ("b.png", PNG))
    data = bytearray(path.read_bytes())
    data[data.index(b"b.png")] = 0xFF
    path.write_bytes(data)
    assert refusal(path).code == "truncated"


@pytest.mark.parametrize(
    ("suffix", "size"), [("cls", 21), ("txt", MAX_CAPTION_BYTES + 1), ("png", MAX_IMAGE_BYTES + 1)]
)
def test_a_member_over_its_limit_is_refused(tmp_path: Path, suffix: str, size: int) -> None:
    path = tar_of(tmp_path / "shard.tar", ("a." + suffix, bytes(size)))
    assert refusal(path).code == "too-large"


@pytest.mark.parametrize("label", [b"", b"-1", b"1.5", b"0x1", b"2147483648", b"1 2", "٣".encode()])
def test_a_label_that_is_none_is_refused(tmp_path: Path, label: bytes) -> None:
    path = tar_of(tmp_path / "shard.tar", ("a.png", PNG), ("a.cls", label))
    with pytest.raises(ShardError, match=r"'a': \.cls holds one whole number") as caught:
        list(iter_samples(path))
    assert caught.value.code == "label-invalid"


@pytest.mark.parametrize("caption", [b"\xff\xfe", b"a\0b"])
def test_a_caption_that_is_none_is_refused(tmp_path: Path, caption: bytes) -> None:
    path = tar_of(tmp_path / "shard.tar", ("a.png", PNG), ("a.txt", caption))
    with pytest.raises(ShardError) as caught:
        list(iter_samples(path))
    assert caught.value.code == "caption-invalid"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_decode_to_rgb(kind: str, mode: str) -> None:
    suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
    image = decode_image(encoded(kind, mode=mode), suffix)
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_only_the_format_of_the_suffix_is_tried() -> None:
    with pytest.raises(ShardError) as caught:
        decode_image(encoded("BMP"), "png")
    assert caught.value.code == "image-undecodable"
    with pytest.raises(ShardError):
        decode_image(PNG, "jpg")


def test_an_animation_is_refused() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(ShardError, match="animated"):
        decode_image(out.getvalue(), "webp")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    data = encoded(size=(4097, 4097), mode="1")
    assert len(data) < 10_000
    assert MAX_IMAGE_PIXELS < 4097 * 4097
    with pytest.raises(ShardError, match="16,785,409 pixels") as caught:
        decode_image(data, "png")
    assert caught.value.code == "image-too-large"


@QUICK
@given(data=st.binary(max_size=500), suffix=st.sampled_from(["jpg", "png", "webp"]))
def test_any_bytes_are_no_image(data: bytes, suffix: str) -> None:
    with pytest.raises(ShardError):
        decode_image(data, suffix)


def test_the_index_tells_where_each_image_lies(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    write_shard(path, [make_sample("a", "png", PNG, 3, "a cat"), make_sample("b", "png", PNG)])
    first, second = index_shard(path, "train.tar")
    assert first.to_dict() | {"offset": 0, "sha256": ""} == {
        "key": "a",
        "shard": "train.tar",
        "suffix": "png",
        "offset": 0,
        "size": len(PNG),
        "sha256": "",
        "width": 8,
        "height": 6,
        "label": 3,
        "caption": "a cat",
    }
    assert (second.key, second.label, second.caption) == ("b", None, None)
    assert second.offset > first.offset
    assert path.read_bytes()[second.offset :][: second.size] == PNG


def test_an_undecodable_image_names_its_sample(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "shard.tar", ("fine.png", PNG), ("broken.png", PNG[:40]))
    with pytest.raises(ShardError, match="sample 'broken'"):
        index_shard(path, "train.tar")
