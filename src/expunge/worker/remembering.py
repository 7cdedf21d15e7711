"""What pairs of encoders said about samples in their views, kept from one audit to the next.

A sample's views depend on the seed and its image alone: another draw, or the auditor's turn, asks
the same again. Bounded in bytes; never runs an encoder.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from expunge.evidence.audit import Level
from expunge.registry.subsets import Chosen
from expunge.unlearning.audit import Answer, Answers, Floats, Memory
from expunge.worker.warmth import Warm

WARM_ANSWER_BYTES = 256 * 2**20
"""Of outputs on owners' samples: some 5,000 of a ResNet-18 with projector in ten views."""


@dataclass(frozen=True)
class _Known:
    """About one sample, first before and then after.

    levels: per level (2, V, D); captions: (2, D), if it was held against its own.
    """

    levels: dict[Level, Floats]
    captions: Floats | None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        captions = 0 if self.captions is None else self.captions.nbytes
        return captions + sum(each.nbytes for each in self.levels.values())


class Remembered:
    """Of one worker process."""

    def __init__(self, limit: int = WARM_ANSWER_BYTES) -> None:
        self._warm: Warm[Hashable, _Known] = Warm("answers", limit, lambda known: known.nbytes)

    def about(self, chosen: Sequence[Chosen], pair: Hashable, *, captions: bool) -> Memory:
        """Of a set of samples, held against their captions or not, by this pair in its views.

        Each owner's apart: how soon an answer comes must not tell that others have the same image.
        """
        names = [
            (pair, each.dataset.owner_id, each.sha256, each.record.caption if captions else None)
            for each in chosen
        ]
        return _OfSet(self._warm, names)


class _OfSet:
    """Reads and writes by places in one set."""

    def __init__(self, warm: Warm[Hashable, _Known], names: Sequence[Hashable]) -> None:
        self._warm = warm
        self._names = names

    def recall(self, places: range) -> Answers | None:
        """See `Memory`."""
        found: list[_Known] = []
        for place in places:
            known = self._warm.get(self._names[place])
            if known is None:
                return None
            found.append(known)
        levels = {
            level: np.stack([each.levels[level] for each in found], axis=2)
            for level in found[0].levels
        }
        texts = [each.captions for each in found if each.captions is not None]
        captions = np.stack(texts, axis=1) if texts else None
        before, after = (
            Answer(
                {level: both[side] for level, both in levels.items()},
                None if captions is None else captions[side],
            )
            for side in (0, 1)
        )
        return before, after

    def keep(self, places: range, answers: Answers) -> None:
        """See `Memory`."""
        before, after = answers
        for row, place in enumerate(places):
            levels = {
                level: np.stack([array[:, row], after.levels[level][:, row]])
                for level, array in before.levels.items()
            }
            captions = None
            if before.captions is not None and after.captions is not None:
                captions = np.stack([before.captions[row], after.captions[row]])
            self._warm.keep(self._names[place], _Known(levels, captions))
