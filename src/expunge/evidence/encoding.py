"""Outputs of two encoders as a file, the receipt that ties them to committed weights, and what checks both.

Anybody can check a receipt and audit from the file. Never runs an encoder.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from expunge.evidence.arrays import BadArrays, read_arrays
from expunge.evidence.audit import Level, Outputs, Side
from expunge.evidence.audit.alignment import caption_cosines, view_cosines
from expunge.evidence.subset import subset_digest

Floats = NDArray[np.float32]

STATEMENT_TYPE = "https://expunge.dev/encoding-receipt/v1"
PAYLOAD_TYPE = "application/vnd.expunge.encoding-receipt+json"
TOLERANCE = 1e-3
"""Largest difference of an entry of an L2-normalised output between two machines' arithmetic."""
SIDES = ("before", "after")
REGISTERED: Final = "registered-samples"
OWN_VIEWS: Final = "own-views"
DIMS = 3


class BadEncoding(ValueError):
    """A file is no encoding, or not the one of its receipt; the message says why."""


@dataclass(frozen=True)
class Encoded:
    """Both encoders' outputs on V views of N samples, per level, and what names the samples.

    keys: as the service names them; digests: hexadecimal SHA-256 of the N registered images; seed:
    of the views, None where they were made at home. Every sample takes part in pairs: `chosen` of
    the levels is 0 … N-1.
    """

    keys: list[str]
    digests: list[str]
    levels: Mapping[Level, Outputs]
    seed: int | None

    @property
    def views(self) -> int:
        """Views of each sample."""
        return next(iter(self.levels.values())).views


@dataclass(frozen=True)
class Weights:
    """A checkpoint by its id and the digests that the service committed to."""

    checkpoint_id: str
    digest: str
    release_digest: str
    """Of the part that may leave, which gives the same outputs."""


@dataclass(frozen=True)
class Inputs:
    """What was encoded, and the digest of it: of the samples' images, or of the tar of own views."""

    kind: Literal["registered-samples", "own-views"]
    samples: int
    digest: str

    @classmethod
    def registered(cls, image_digests: Sequence[str]) -> Self:
        """Registered images, by the hexadecimal SHA-256 of each."""
        return cls(REGISTERED, len(image_digests), subset_digest(image_digests))


def pack(encoded: Encoded) -> bytes:
    """The outputs as an npz file: `keys`, `sha256`, `seed` (if any), and per level `<level>_<side>` (V, N, D) float32.

    Captions (N, D) of CLIP are `image_text_<side>`: the images' side is `encoder_<side>`.
    """
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.array(encoded.keys),
        "sha256": np.array(encoded.digests),
    }
    if encoded.seed is not None:
        arrays["seed"] = np.array(encoded.seed, dtype=np.int64)
    for level, outputs in encoded.levels.items():
        for name, side in zip(SIDES, (outputs.before, outputs.after), strict=True):
            arrays[f"{level}_{name}"] = side.views if side.captions is None else side.captions
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def unpack(data: bytes) -> Encoded:
    """The outputs that `pack` wrote; nothing is ever unpickled.

    Raises:
        BadEncoding: it is no such file.
    """
    try:
        return _encoded(read_arrays(data))
    except BadArrays as error:
        raise BadEncoding(f"this is no npz file of an encoding ({error})") from error
    except (KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
        raise BadEncoding(f"the file's arrays are not those of an encoding ({error})") from error


def _encoded(arrays: Mapping[str, NDArray[Any]]) -> Encoded:
    keys, digests = arrays["keys"].tolist(), arrays["sha256"].tolist()
    before, after = arrays["encoder_before"], arrays["encoder_after"]
    for name, array in arrays.items():
        is_output = name.endswith(tuple(f"_{side}" for side in SIDES))
        if is_output and (array.dtype != np.float32 or array.shape[-2] != len(keys)):
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        if is_output and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    levels: dict[Level, Outputs] = {"encoder": _outputs(before, after)}
    if "projector_before" in arrays:
        levels["projector"] = _outputs(arrays["projector_before"], arrays["projector_after"])
    if "image_text_before" in arrays:
        captions = (arrays["image_text_before"], arrays["image_text_after"])
        levels["image_text"] = _outputs(before, after, captions)
    seed = int(arrays["seed"]) if "seed" in arrays else None
    return Encoded([str(each) for each in keys], [str(each) for each in digests], levels, seed)


def _outputs(
    before: Floats, after: Floats, captions: tuple[Floats, Floats] | None = None
) -> Outputs:
    if before.shape != after.shape or before.ndim != DIMS or 0 in before.shape:
        raise ValueError(f"outputs are {before.shape} and {after.shape}")
    every = np.arange(before.shape[1])
    if captions is None:
        sides = [Side(views, view_cosines(views)) for views in (before, after)]
    else:
        sides = [
            Side(views, caption_cosines(views, texts), texts)
            for views, texts in zip((before, after), captions, strict=True)
        ]
    return Outputs(sides[0], sides[1], every)


def statement(
    *,
    encoding_id: str,
    request_id: str,
    before: Weights,
    after: Weights,
    inputs: Inputs,
    encoded: Encoded,
    data: bytes,
    code_version: str,
    issued_at: str,
) -> dict[str, Any]:
    """What the service answers for: these outputs came from these weights and these inputs.

    `data` is the packed file. Numbers that JSON readers may round are text.
    """
    return {
        "type": STATEMENT_TYPE,
        "encoding_id": encoding_id,
        "request_id": request_id,
        "before": asdict(before),
        "after": asdict(after),
        "inputs": asdict(inputs),
        "views": encoded.views,
        "seed": _text(encoded.seed),
        "levels": sorted(encoded.levels),
        "outputs_sha256": hashlib.sha256(data).hexdigest(),
        "code_version": code_version,
        "issued_at": issued_at,
    }


def check(statement: Mapping[str, Any], data: bytes) -> Encoded:
    """The outputs of a file, if they are those that the statement is about.

    Raises:
        BadEncoding: the statement is of another kind, the file is not the one that it names, or
            holds other samples, views, seeds or levels than it says.
    """
    if statement.get("type") != STATEMENT_TYPE:
        raise BadEncoding(f"the receipt is no {STATEMENT_TYPE}")
    if hashlib.sha256(data).hexdigest() != statement.get("outputs_sha256"):
        raise BadEncoding("the outputs are not those that the receipt names: their SHA-256 differs")
    encoded = unpack(data)
    if encoded.views != statement.get("views") or sorted(encoded.levels) != statement.get("levels"):
        raise BadEncoding("the outputs have other views or levels than the receipt says")
    if _text(encoded.seed) != statement.get("seed"):
        raise BadEncoding("the outputs are of views of another seed than the receipt says")
    if encoded.seed is not None and statement.get("inputs") != asdict(
        Inputs.registered(encoded.digests)
    ):
        raise BadEncoding("the outputs are of other samples than the receipt says")
    return encoded


def _text(seed: int | None) -> str | None:
    return None if seed is None else str(seed)


def largest_difference(
    encoded: Encoded, side: str, recomputed: Mapping[Level, Side], places: Sequence[int]
) -> float:
    """Between the outputs of one side (`before`, `after`) at these samples and recomputed ones, over all levels."""
    found = 0.0
    for level, outputs in encoded.levels.items():
        claimed: Side = getattr(outputs, side)
        mine = recomputed[level]
        found = max(found, float(np.abs(claimed.views[:, list(places)] - mine.views).max()))
        if claimed.captions is not None and mine.captions is not None:
            texts = claimed.captions[list(places)]
            found = max(found, float(np.abs(texts - mine.captions).max()))
    return found
