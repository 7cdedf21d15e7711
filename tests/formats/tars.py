"""Tar archives with headers that say anything, their checksums right: what a writer with bad intent makes."""

from hypothesis import strategies as st

BLOCK = 512
DIGITS = 5_000
"""Python refuses to read integers of more than 4,300."""
TYPES = b"\x000123456789gxXLKSDNMVAZ"
NAMES = (
    b"a.png", b"a.json", b"b.png", b"a.cls", b"a__0.png", b"a__0.json", b"dir/a.png", b"", b".", b"..",
    b"/etc/passwd", b"../a.png", b"a\\b.png", b"\xff\xfe.png", b"x" * 100, b"a.png\0rest", b"./a.png",
)  # fmt: skip
KEYWORDS = (
    b"path", b"size", b"linkpath", b"mtime", b"uid", b"hdrcharset", b"charset", b"comment",
    b"GNU.sparse.map", b"GNU.sparse.realsize", b"GNU.sparse.name", b"SCHILY.xattr.user.x", b"", b"\xff",
)  # fmt: skip
VALUES = (
    b"", b"0", b"-1", b"1", b"512", b"nan", b"inf", b"1e999", b"BINARY", b"utf-7", b"a.png", b"../a.png",
    b"/a", b"\xff", b"9" * DIGITS, b"1" * 20, b"x" * 300,
)  # fmt: skip
SIZES = (0, 1, 20, 511, 512, 513, 2**20, 8**11 - 1, 2**63, 2**88)


def header(name: bytes, size: bytes, kind: bytes, *, prefix: bytes = b"") -> bytes:
    """One header block as is, whatever it says."""
    block = bytearray(BLOCK)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = b"0000644\0"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\00000"
    block[345:500] = prefix[:155].ljust(155, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    """A size as tar writes it; larger ones, and negative ones, to the base of 256."""
    if 0 <= size < 8**11:
        return b"%011o\0" % size
    return (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")


def padded(data: bytes) -> bytes:
    """Up to the next block."""
    return data + bytes(-len(data) % BLOCK)


def records(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Extended attributes (pax), their lengths right."""
    found = b""
    for keyword, value in pairs:
        rest = b" " + keyword + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        found += str(length).encode() + rest
    return found


def attributes(content: bytes) -> bytes:
    """A member of extended attributes for the one that follows."""
    return header(b"x", octal(len(content)), b"x") + padded(content)


def archives(contents: list[bytes]) -> st.SearchStrategy[bytes]:
    """Archives of these contents under names, sizes and kinds that fit them or do not."""
    sizes = (
        st.sampled_from(SIZES).map(octal) | st.just(octal(-1)) | st.binary(min_size=12, max_size=12)
    )
    kinds = st.sampled_from([TYPES[place : place + 1] for place in range(len(TYPES))])
    content = st.sampled_from(contents) | st.binary(max_size=40)
    honest = st.builds(
        lambda name, data: header(name, octal(len(data)), b"0") + padded(data),
        st.sampled_from(NAMES[:7]),
        content,
    )
    lying = st.builds(
        lambda name, size, kind, prefix, data: (
            header(name, size, kind, prefix=prefix) + padded(data)
        ),
        st.sampled_from(NAMES),
        sizes,
        kinds,
        st.sampled_from((b"", b"dir", b"..", b"\xff")),
        content,
    )
    pairs = st.tuples(st.sampled_from(KEYWORDS), st.sampled_from(VALUES))
    extended = st.lists(pairs, min_size=1, max_size=3).map(records)
    broken = st.sampled_from(
        (
            b"0 a=b\n",
            b"9" * DIGITS + b" a=b\n",
            b"99 a=b\n",
            b"5 a=\n\n",
            b"-1 a=b\n",
            b"6 \n",
            b"\0" * 20,
        )
    )
    long_name = st.builds(
        lambda kind, name: header(b"././@LongLink", octal(len(name)), kind) + padded(name),
        st.sampled_from((b"L", b"K")),
        st.sampled_from(NAMES) | st.just(b"y" * 300 + b".png"),
    )
    part = st.one_of(
        honest, honest, lying, (extended | broken).map(attributes), long_name,
        (extended | broken).map(lambda told: header(b"g", octal(len(told)), b"g") + padded(told)),
    )  # fmt: skip
    end = st.sampled_from((bytes(2 * BLOCK), bytes(BLOCK), b"", bytes(20 * BLOCK), b"x" * BLOCK))
    return st.builds(
        lambda parts, last: b"".join(parts) + last, st.lists(part, min_size=1, max_size=5), end
    )
