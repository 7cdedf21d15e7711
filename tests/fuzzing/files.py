"""Bodies that are files: valid ones, ones that are damaged here and there, and noise."""

import io
import json
import random
import tarfile
from pathlib import Path

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from tests.api.conftest import ENCODER

from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.checkpoints import save
from expunge.unlearning.frameworks import build

SIZE = 16
DATASET = f"dst_{'0' * 32}"
DAMAGES = 8
"""Damaged variants of each file."""
MAX_CHANGES = 6
HEADER_BYTES = 2_000
"""Where most changes go: there the structure is."""


def known_to_schemathesis(folder: Path, seed: int) -> None:
    """Let schemathesis draw these files as bodies of the media types that the service takes."""
    rng = random.Random(seed)  # noqa: S311 - to be repeated
    tars = [_shard(), _views()]
    weights = folder / "encoder.safetensors"
    save(build(EncoderSpec.model_validate(ENCODER), seed=1), weights)
    schemathesis.openapi.media_type("application/x-tar", _drawn(tars, rng))
    schemathesis.openapi.media_type("application/octet-stream", _drawn([weights.read_bytes()], rng))


def _drawn(files: list[bytes], rng: random.Random) -> st.SearchStrategy[bytes]:
    damaged = [_damaged(data, rng) for data in files for _ in range(DAMAGES)]
    return st.sampled_from(files) | st.sampled_from(damaged) | st.binary(max_size=2_000)


def _damaged(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        found[rng.randrange(min(len(found), HEADER_BYTES))] = rng.randrange(256)
    return bytes(found[: rng.randrange(len(found))] if rng.random() < 1 / 4 else found)


def _png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), 100).save(out, "PNG")
    return out.getvalue()


def _shard() -> bytes:
    return _tar({"a.png": _png(), "a.cls": b"1", "a.txt": b"a caption", "b.png": _png()})


def _views() -> bytes:
    told = json.dumps({"sample": f"{DATASET}/a", "crop": [0, 0, 8, 8], "flip": False}).encode()
    return _tar({"v__0.png": _png(), "v__0.json": told, "v__1.png": _png(), "v__1.json": told})


def _tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()
