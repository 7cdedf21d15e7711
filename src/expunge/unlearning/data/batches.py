"""Which samples form each step: stratified so that no unlearn set is too small to be trained on.

Only indices; never touches images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of the steps of a run; every step has the same shape."""

    retain: int
    """Retained samples a step; 0 when the method does not use them."""
    unlearn: int
    """Unlearn samples a step; 0 when the method does not use them."""
    steps: int
    """Steps an epoch: whole batches over the retain set, or over the unlearn set without one."""


def plan_batches(
    retain_size: int, unlearn_size: int, batch_size: int, *, multiple: int = 1
) -> BatchPlan:
    """Mix retain and unlearn samples in the proportion of their sets, at least one of each.

    A set smaller than its share is used whole; a set of size 0 has no part in the batches, and one
    of the two is not empty. `multiple`: preferred divisor of the number of unlearn samples in a
    mixed batch (the groups of split batch norm). The last incomplete batch of retained samples is
    dropped; unlearn samples left over begin the next epoch.
    """
    total = retain_size + unlearn_size
    batch_size = min(batch_size, total)
    if not retain_size:
        return BatchPlan(0, batch_size, unlearn_size // batch_size)
    unlearn = 0
    if unlearn_size:
        share = batch_size * unlearn_size / total
        unlearn = max(1, multiple * round(share / multiple))
        unlearn = min(unlearn, unlearn_size, batch_size - 1)
    retain = min(batch_size - unlearn, retain_size)
    return BatchPlan(retain, unlearn, max(1, retain_size // retain))


@dataclass(frozen=True)
class StepIndices:
    """Positions of one step's samples: retained first, then unlearn."""

    retain: Tensor
    """(n_retain,) int64 into the retain set."""
    unlearn: Tensor
    """(n_unlearn,) int64 into the unlearn set."""
    partner: Tensor
    """(n_unlearn,) int64 into the unlearn set: what the second view of each shows."""


class BatchStream:
    """Seeded stream of steps; the unlearn set is cycled through, one permutation after another.

    With `swap_positives` the partner of an unlearn sample is another one, drawn at random; without,
    it is the sample itself.
    """

    def __init__(
        self,
        plan: BatchPlan,
        retain_size: int,
        unlearn_size: int,
        *,
        seed: int,
        swap_positives: bool = False,
    ) -> None:
        self.plan = plan
        self._swap_positives = swap_positives
        self._retain_size = retain_size
        self._unlearn_size = unlearn_size
        self._generator = torch.Generator().manual_seed(seed)
        self._pending = torch.empty(0, dtype=torch.int64)

    def state(self) -> dict[str, Tensor]:
        """What the next epoch's steps depend on, for `restore`."""
        return {"generator": self._generator.get_state(), "pending": self._pending}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on as the stream that gave this state would have."""
        self._generator.set_state(state["generator"])
        self._pending = state["pending"]

    def epoch(self, device: torch.device) -> Iterator[StepIndices]:
        """The steps of the next epoch, with all indices moved to `device` at once."""
        plan = self.plan
        count = plan.steps * plan.retain
        retain = self._permutation(self._retain_size)[:count].view(plan.steps, plan.retain)
        unlearn = self._next_unlearn(plan.steps * plan.unlearn)
        partner = self._partners(unlearn) if self._swap_positives else unlearn
        tables = [
            table.view(plan.steps, -1).to(device, non_blocking=True)
            for table in (retain, unlearn, partner)
        ]
        for rows in zip(*tables, strict=True):
            yield StepIndices(*rows)

    def _permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self._generator)

    def _next_unlearn(self, count: int) -> Tensor:
        while len(self._pending) < count:
            self._pending = torch.cat([self._pending, self._permutation(self._unlearn_size)])
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken

    def _partners(self, unlearn: Tensor) -> Tensor:
        others = self._unlearn_size - 1
        if others < 1:
            return unlearn
        offset = torch.randint(1, others + 1, unlearn.shape, generator=self._generator)
        return (unlearn + offset) % self._unlearn_size
