"""What a method is to the training loop: where it starts, what a batch holds, what it minimises.

Never draws batches, makes views or steps an optimiser: `training` does.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.unlearning.frameworks import Learner


@dataclass(frozen=True)
class Batch:
    """Views of one step, (B, 3, S, S) float32 normalised; retained samples first, then unlearn.

    The second view shows the same sample, unless the method swaps positives: then that of an
    unlearn sample shows another unlearn sample, drawn at random. With a single unlearn sample there
    is no other, and it shows the same one.
    """

    first: Tensor
    second: Tensor
    second_ids: Tensor
    """(B,) int64: which sample each second view shows."""
    retain: int
    """How many of the B samples are retained."""
    epoch: int
    """Epochs finished before this step."""
    third: Tensor | None = None
    """(B - retain, 3, S, S) a further view of each unlearn sample itself, where the method asks."""
    other: Tensor | None = None
    """(retain, 3, S, S) a further view of each retained sample, where the method asks."""


@dataclass(frozen=True)
class SetSizes:
    """|R| and |U|."""

    retain: int
    unlearn: int


class UnlearningMethod(ABC):
    """One way to unlearn. Its parameters are checked by `catalog` before it is made."""

    uses_unlearn_set: ClassVar[bool]
    """Whether batches hold unlearn samples."""
    uses_retain_set: ClassVar[bool] = True
    """Whether batches hold retained samples; an epoch is a pass over the unlearn set if not."""
    uses_third_view: ClassVar[bool] = False
    uses_other_view: ClassVar[bool] = False
    """Whether batches hold a further view of each retained sample, whatever it is paired with."""
    swaps_positives: ClassVar[bool] = False
    """Whether the second view of an unlearn sample shows another unlearn sample."""

    def start(self, learner: Learner, seed: int) -> Learner:
        """The learner to train: a copy of the given one."""
        del seed
        return copy.deepcopy(learner)

    @abstractmethod
    def losses(self, learner: Learner, batch: Batch, sizes: SetSizes) -> dict[str, Tensor]:
        """Scalars to report; the one named `loss` is minimised."""


def own_objective(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    """The framework's own objective on the whole batch."""
    return {"loss": learner.contrast(batch.first, batch.second, batch.second_ids).mean_loss()}
