"""Runs two encoders on the same views of a set and hands their outputs to `expunge.evidence.audit`.

Streams: however large the set, only batches and what the audit keeps are in memory. Never trains.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from expunge.evidence import audit as evidence
from expunge.evidence.audit import AuditReport, Level, Outputs, Reference, Side, pair_samples
from expunge.evidence.audit.alignment import caption_cosines, view_cosines
from expunge.unlearning.data.captions import Captions
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import Learner
from expunge.unlearning.frameworks.clip import CLIP
from expunge.unlearning.hardware import resolve_device
from expunge.unlearning.metrics.features import measuring

Floats = NDArray[np.float32]
ViewMaker = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""From images, ids and numbers of views to the normalised views, as `Views.several` makes them."""

DEFAULT_VIEWS = 10
CPU_BATCH_IMAGES = 32
"""Views that go through an encoder at once; few samples go in several views together. More are no
faster on a CPU, whose caches they overflow, and keep those waiting for whom room is made in between."""
GPU_BATCH_IMAGES = 512
LEAST_ROWS = 16
"""Views or captions that go through together at least, if need be with idle ones: matrix products of fewer rows
are rounded in another way, and a sample's outputs would depend on who else is asked about."""


@dataclass(frozen=True)
class Answer:
    """What one encoder says about B samples.

    levels: per level (V, B, D) float32 L2-normalised outputs of the views; captions: (B, D) float32
    mean of each sample's L2-normalised caption outputs, for CLIP and captioned images.
    """

    levels: Mapping[Level, Floats]
    captions: Floats | None = None


Answers = tuple[Answer, Answer]
"""Of the encoders before and after."""


class Memory(Protocol):
    """Answers that were given before, about one set's samples in the same views."""

    def recall(self, places: range) -> Answers | None:
        """About the samples at these places of the set, in order; None unless all are known."""

    def keep(self, places: range, answers: Answers) -> None:
        """Take new ones in."""


def audit(
    before: Learner,
    after: Learner,
    own: ImageSet,
    *,
    retained: ImageSet | None = None,
    control: ImageSet | None = None,
    views: int = DEFAULT_VIEWS,
    seed: int = 0,
    matrix_size: int = 64,
    device: str = "auto",
) -> AuditReport:
    """`evidence.audit.audit` of two encoders of one specification; sets as it describes them.

    Raises ValueError as `outputs` does.
    """

    def measured(images: ImageSet) -> dict[Level, Outputs]:
        return outputs(before, after, images, views=views, seed=seed, device=device)

    return evidence.audit(
        measured(own),
        own.keys,
        Reference(measured(retained)) if retained else None,
        Reference(measured(control)) if control else None,
        seed=seed,
        matrix_size=matrix_size,
    )


def outputs(
    before: Learner,
    after: Learner,
    images: ImageSet,
    *,
    views: int = DEFAULT_VIEWS,
    seed: int = 0,
    device: str = "auto",
) -> dict[Level, Outputs]:
    """What both encoders say about the same `views` training-style views of N images.

    A view depends on `seed` and the image alone. Levels: encoder features; projector outputs, where
    the framework has a projector; images against their captions, for CLIP and captioned images.
    Networks run in eval mode and float32. Raises ValueError for an empty set, fewer than two views,
    or differing specifications.
    """
    return stream_outputs(
        before, after, [images], len(images), views=views, seed=seed, device=device
    )


def stream_outputs(
    before: Learner,
    after: Learner,
    batches: Iterable[ImageSet],
    samples: int,
    *,
    views: int = DEFAULT_VIEWS,
    seed: int = 0,
    device: str = "auto",
    make: ViewMaker | None = None,
    memory: Memory | None = None,
) -> dict[Level, Outputs]:
    """`outputs` of a set that comes in batches and has so many samples together.

    `make` gives other views than those of the seed. Encoders do not run on batches that `memory`
    knows. Holds one batch at a time. Raises ValueError as `outputs` does, and where the number of
    samples is another.
    """
    if samples == 0:
        raise ValueError("an audit needs at least one sample")
    if before.spec != after.spec:
        raise ValueError("the two encoders have different specifications")
    target = resolve_device(device)
    spec = before.spec
    make = make or Views(spec.image_size, spec.mean, spec.std, seed=seed).several
    chosen = pair_samples(samples, seed)
    sides = _Collection(), _Collection()
    start = 0
    bound = CPU_BATCH_IMAGES if target.type == "cpu" else GPU_BATCH_IMAGES
    with measuring(before, target), measuring(after, target), ThreadPoolExecutor(2) as pool:
        for part in _bounded(batches, bound):
            stop = start + len(part)
            answers = None if memory is None else memory.recall(range(start, stop))
            if answers is None:
                together = max(1, bound // len(part))
                answers = _answers(
                    (before, after),
                    part.to(target),
                    make,
                    views=views,
                    together=together,
                    pool=pool,
                )
                if memory is not None:
                    memory.keep(range(start, stop), answers)
            kept = chosen[(chosen >= start) & (chosen < stop)] - start
            for side, answer in zip(sides, answers, strict=True):
                side.take(answer, kept)
            start = stop
    if start != samples:
        raise ValueError(f"{start} samples came, not {samples}")
    first, second = (side.found() for side in sides)
    return {level: Outputs(side, second[level], chosen) for level, side in first.items()}


def _bounded(batches: Iterable[ImageSet], bound: int) -> Iterator[ImageSet]:
    for batch in batches:
        for start in range(0, len(batch), bound):
            yield batch.subset(range(start, min(start + bound, len(batch))))


@dataclass
class _Collected:
    """One level's outputs as they come, batch by batch."""

    views: list[Floats] = field(default_factory=list)
    cosines: list[NDArray[np.float64]] = field(default_factory=list)
    captions: list[Floats] = field(default_factory=list)

    def side(self) -> Side:
        captions = np.concatenate(self.captions) if self.captions else None
        return Side(np.concatenate(self.views, axis=1), np.concatenate(self.cosines), captions)


class _Collection:
    """One encoder's outputs on a set, level by level, as its batches come."""

    def __init__(self) -> None:
        self._levels: dict[Level, _Collected] = {}

    def take(self, answer: Answer, kept: NDArray[np.int64]) -> None:
        """The next batch; `kept` are those of its samples that are wanted whole."""
        for level, array in answer.levels.items():
            collected = self._levels.setdefault(level, _Collected())
            collected.views.append(array[:, kept])
            collected.cosines.append(view_cosines(array))
        if answer.captions is not None:
            images = answer.levels["encoder"]
            collected = self._levels.setdefault("image_text", _Collected())
            collected.views.append(images[:, kept])
            collected.cosines.append(caption_cosines(images, answer.captions))
            collected.captions.append(answer.captions[kept])

    def found(self) -> dict[Level, Side]:
        """The outputs of all batches together."""
        return {level: collected.side() for level, collected in self._levels.items()}


def _answers(
    learners: tuple[Learner, Learner],
    batch: ImageSet,
    make: ViewMaker,
    *,
    views: int,
    together: int,
    pool: Executor,
) -> Answers:
    """Of both learners about a batch.

    So many views go through at once, and each is made once for both learners. Learners go side by
    side: where one has to wait for a core, the other does not wait for it at every layer.
    """
    parts: tuple[dict[Level, list[Tensor]], ...] = ({}, {})
    for start in range(0, views, together):
        numbers = range(start, min(start + together, views))
        seen = make(batch.images, batch.ids, numbers)
        shape = (len(numbers), len(batch), -1)
        encoded = pool.map(partial(_encoded, seen=seen, shape=shape), learners)
        for found, levels in zip(parts, encoded, strict=True):
            for level, normalised in levels.items():
                found.setdefault(level, []).append(normalised)
    before, after = (
        Answer(
            {level: torch.cat(made).cpu().numpy() for level, made in found.items()},
            _caption_outputs(learner, batch.captions),
        )
        for learner, found in zip(learners, parts, strict=True)
    )
    return before, after


@torch.no_grad()
def _encoded(learner: Learner, *, seen: Tensor, shape: tuple[int, ...]) -> dict[Level, Tensor]:
    """Per level L2-normalised outputs of a batch of views, in this shape and their dimension."""
    rows = len(seen)
    blank = seen.new_zeros(max(0, LEAST_ROWS - rows), *seen.shape[1:])
    features = learner.features(torch.cat([seen, blank]) if len(blank) else seen)
    found: dict[Level, Tensor] = {"encoder": F.normalize(features[:rows], dim=1).view(shape)}
    if learner.has_projector:
        found["projector"] = learner.project(features)[:rows].view(shape)
    return found


def _caption_outputs(learner: Learner, captions: Captions | None) -> Floats | None:
    """(B, D) mean of each sample's L2-normalised caption outputs; None without captions or CLIP."""
    if captions is None or not isinstance(learner, CLIP):
        return None
    rows, owner = captions.rows()
    more = rows[:1].expand(max(0, LEAST_ROWS - len(rows)))
    tokens = captions.tokens[torch.cat([rows, more]).to(captions.tokens.device)]
    texts = learner.text_features(tokens)[: len(rows)]
    sums = texts.new_zeros(len(captions), texts.shape[1]).index_add_(
        0, owner.to(texts.device), texts
    )
    means: Floats = (sums / captions.count.to(texts).unsqueeze(1)).cpu().numpy()
    return means
