"""Recomputes outputs of an encoding from a checkpoint file, to hold them against what a service claimed.

Needs the weights: who has none can only see that answers are consistent and signed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.evidence.audit import Level, Side
from expunge.evidence.encoding import SIDES, TOLERANCE, BadEncoding, Encoded, largest_difference
from expunge.formats.digests import sha256_file
from expunge.formats.home_views import index_views, read_views
from expunge.unlearning.audit import ViewMaker, stream_outputs
from expunge.unlearning.checkpoints import load
from expunge.unlearning.data.image_set import ImageSet, load_for, sample_id
from expunge.unlearning.data.views import GivenViews
from expunge.unlearning.frameworks import Learner

MAX_OWN_VIEWS = 1_000_000


@dataclass(frozen=True)
class SpotCheck:
    """What was recomputed: the side of the encoding, the samples' keys, and the largest difference of an entry."""

    side: str
    keys: list[str]
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within what two machines' arithmetic makes."""
        return self.difference <= TOLERANCE


def spot_check(
    encoded: Encoded,
    statement: Mapping[str, Any],
    checkpoint: Path,
    shards: Sequence[Path],
    *,
    samples: int,
    seed: int,
    own_views: Path | None = None,
) -> SpotCheck:
    """Recompute at most `samples` samples' outputs, drawn by `seed` among those that the shards hold.

    statement: of the receipt that `encoded` was checked with; own_views: the tar that was encoded,
    where the views were made at home.

    Raises:
        BadEncoding: the file is neither of the two checkpoints nor what is released of them, the
            shards hold none of the samples, or views are needed and missing.
        CheckpointMismatch: the checkpoint's tensors do not fit its header.
        ShardError, ViewError: a tar breaks a rule.
    """
    side, released = _side(statement, checkpoint)
    learner = load(checkpoint, released=released)
    images, places = _present(encoded, load_for(learner.spec, shards))
    order = np.random.default_rng(seed).permutation(len(places))[:samples]
    images = images.subset(torch.from_numpy(np.sort(order)))
    places = [places[each] for each in np.sort(order)]
    keys = [encoded.keys[place] for place in places]
    recomputed = _outputs(learner, images, encoded, keys, own_views)
    return SpotCheck(side, keys, largest_difference(encoded, side, recomputed, places))


def _side(statement: Mapping[str, Any], checkpoint: Path) -> tuple[str, bool]:
    """Which one the file is, and whether it is only the part that may leave."""
    digest = f"sha256:{sha256_file(checkpoint)}"
    for side in SIDES:
        # Receipts of before name the whole files only.
        whole, part = statement[side]["digest"], statement[side].get("release_digest")
        if digest in (whole, part):
            return side, digest != whole
    raise BadEncoding(
        f"{checkpoint} ({digest}) is neither of the two checkpoints that the receipt names"
    )


def _present(encoded: Encoded, images: ImageSet) -> tuple[ImageSet, list[int]]:
    """The images of encoded samples, and each one's place in the encoding."""
    here = {identity: place for place, identity in enumerate(images.ids.tolist())}
    wanted = [(place, here.get(sample_id(each))) for place, each in enumerate(encoded.digests)]
    found = [(place, where) for place, where in wanted if where is not None]
    if not found:
        raise BadEncoding("the shards hold none of the encoded samples")
    return images.subset([where for _, where in found]), [place for place, _ in found]


def _outputs(
    learner: Learner, images: ImageSet, encoded: Encoded, keys: Sequence[str], tar: Path | None
) -> dict[Level, Side]:
    make: ViewMaker | None = None
    if encoded.seed is None:
        if tar is None:
            raise BadEncoding(
                "its views were made at home; give the tar that was sent (--own-views)"
            )
        make = _given(learner, keys, tar).several
        images = replace(images, ids=torch.arange(len(images)))
    found = stream_outputs(
        learner,
        learner,
        [images],
        len(images),
        views=encoded.views,
        seed=encoded.seed or 0,
        device="cpu",
        make=make,
    )
    return {level: outputs.before for level, outputs in found.items()}


def _given(learner: Learner, keys: Sequence[str], tar: Path) -> GivenViews:
    size = learner.spec.image_size
    views = index_views(tar, size, max_samples=MAX_OWN_VIEWS, max_views=MAX_OWN_VIEWS)
    by_key = {each[0].sample: each for each in views}
    by_key |= {each[0].sample.partition("/")[2]: each for each in views}
    pixels = np.stack([read_views(tar, by_key[key], size) for key in keys])
    tensor = torch.from_numpy(pixels).permute(1, 0, 4, 2, 3)
    return GivenViews(tensor, learner.spec.mean, learner.spec.std)
