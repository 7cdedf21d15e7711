"""Encodings and their receipts: read back exactly, and every change to them noticed."""

import hashlib
import io
from typing import Any

import numpy as np
import pytest

from expunge.evidence import encoding
from expunge.evidence.audit import Level, Outputs, audit
from expunge.evidence.encoding import OWN_VIEWS, BadEncoding, Encoded, Inputs, Weights

VIEWS, SAMPLES, DIMS = 4, 6, 8


def outputs(seed: int) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=(VIEWS, SAMPLES, DIMS))
    return (raw / np.linalg.norm(raw, axis=2, keepdims=True)).astype(np.float32)


def encoded(*, captioned: bool = False, seed: int | None = 7) -> Encoded:
    levels: dict[Level, Outputs] = {"encoder": Outputs.of(outputs(0), outputs(1))}
    if captioned:
        texts = (outputs(2)[0], outputs(3)[0])
        levels["image_text"] = Outputs.of(outputs(0), outputs(1), captions=texts)
    else:
        levels["projector"] = Outputs.of(outputs(4), outputs(5))
    keys = [f"cats/{number}" for number in range(SAMPLES)]
    return Encoded(keys, [hashlib.sha256(key.encode()).hexdigest() for key in keys], levels, seed)


def statement(of: Encoded, data: bytes) -> dict[str, Any]:
    return encoding.statement(
        encoding_id="enc_1",
        request_id="req_1",
        before=Weights("ckp_1", "sha256:1", "sha256:3"),
        after=Weights("ckp_2", "sha256:2", "sha256:4"),
        inputs=Inputs.registered(of.digests)
        if of.seed is not None
        else Inputs(OWN_VIEWS, SAMPLES, "sha256:3"),
        encoded=of,
        data=data,
        code_version="1",
        issued_at="2026-01-31T12:00:00Z",
    )


@pytest.mark.parametrize("captioned", [False, True])
@pytest.mark.parametrize("seed", [7, 2**63 - 1, None])
def test_an_encoding_is_read_back_to_the_last_bit(captioned: bool, seed: int | None) -> None:
    wanted = encoded(captioned=captioned, seed=seed)
    data = encoding.pack(wanted)
    found = encoding.unpack(data)
    assert (found.keys, found.digests, found.seed) == (wanted.keys, wanted.digests, seed)
    assert found.levels.keys() == wanted.levels.keys()
    numbers = [audit(each.levels, each.keys).to_dict() for each in (wanted, found)]
    assert numbers[0] == numbers[1]
    assert encoding.pack(found) == data


def test_the_receipt_accepts_its_own_file() -> None:
    wanted = encoded()
    data = encoding.pack(wanted)
    found = encoding.check(statement(wanted, data), data)
    assert found.keys == wanted.keys


def test_any_changed_byte_is_noticed() -> None:
    wanted = encoded()
    data = encoding.pack(wanted)
    receipt = statement(wanted, data)
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(BadEncoding, match="SHA-256"):
            encoding.check(receipt, bytes(changed))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "x"},
        {"views": 5},
        {"levels": ["encoder"]},
        {"seed": "8"},
        {"seed": None},
        {"inputs": {"kind": "registered-samples", "samples": SAMPLES, "digest": "sha256:3"}},
        {"inputs": None},
    ],
)
def test_a_receipt_that_says_something_else_is_refused(change: dict[str, Any]) -> None:
    wanted = encoded()
    data = encoding.pack(wanted)
    with pytest.raises(BadEncoding):
        encoding.check(statement(wanted, data) | change, data)


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 cut off",
        npz(keys=np.array(["a"])),
        npz(
            keys=np.array(["a"]),
            sha256=np.array(["b"]),
            encoder_before=np.zeros((2, 2, 3), np.float32),
            encoder_after=np.zeros((2, 2, 3), np.float32),
        ),
        npz(
            keys=np.array(["a"]),
            sha256=np.array(["b"]),
            encoder_before=np.zeros((2, 1, 3)),
            encoder_after=np.zeros((2, 1, 3)),
        ),
        npz(keys=np.array([{"pickled": 1}], dtype=object)),
    ],
)
def test_what_is_no_encoding_is_refused(data: bytes) -> None:
    with pytest.raises(BadEncoding):
        encoding.unpack(data)


@pytest.mark.parametrize("captioned", [False, True])
def test_the_largest_difference_is_over_all_levels_and_captions(captioned: bool) -> None:
    claimed = encoded(captioned=captioned)
    mine = {level: each.before for level, each in encoded(captioned=captioned).levels.items()}
    every = range(SAMPLES)
    assert encoding.largest_difference(claimed, "before", mine, every) == 0
    assert encoding.largest_difference(claimed, "after", mine, every) > encoding.TOLERANCE
    last = mine["image_text" if captioned else "projector"]
    (last.views if last.captions is None else last.captions)[-1] += 0.25
    found = encoding.largest_difference(claimed, "before", mine, every)
    assert found == pytest.approx(0.25, abs=1e-6)
