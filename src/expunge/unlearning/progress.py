"""Where a run stands and what came of it: plain records and a clock. Never trains."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.unlearning.data.batches import BatchPlan
from expunge.unlearning.errors import NonFiniteLossError
from expunge.unlearning.frameworks import Learner

REPORT_SECONDS = 0.5
"""At least this long between two looks at the losses, each of which waits for the device."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: finished epochs and steps, and the mean losses of this epoch so far."""

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    losses: dict[str, float]
    images_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """A finished run; `images_per_second` counts a sample once however many views it has."""

    learner: Learner
    history: list[dict[str, float]]
    """Mean losses of each epoch."""
    seconds: float
    """Of the run itself, those before it was resumed included, scores of epochs left out."""
    steps: int
    images_per_second: float
    device: str
    precision: str
    scores: list[float] = field(default_factory=list)
    """What `score` gave after each epoch; empty without one."""
    best_epoch: int | None = None
    """1-based epoch whose weights these are, where `score` chose them."""


OnProgress = Callable[[Progress], None]


class RunStopped(Exception):
    """The run ended early because `Snapshots.should_stop` said so; its snapshot has all it did."""


class Clock:
    """Time, steps and speed of a run; time spent on other things can be left out."""

    def __init__(self, plan: BatchPlan, epochs: int) -> None:
        self.steps = plan.steps * epochs
        self.steps_done = 0
        self._images_per_step = plan.retain + plan.unlearn
        self._start = self._last_report = time.perf_counter()

    def resume(self, seconds: float, steps_done: int) -> None:
        """Go on from a run that took `seconds` for `steps_done` steps."""
        self._start -= seconds
        self.steps_done = steps_done

    def leave_out(self, seconds: float) -> None:
        """Do not count the last `seconds`."""
        self._start += seconds

    def due(self) -> bool:
        """Whether it is time to report."""
        now = time.perf_counter()
        if now - self._last_report < REPORT_SECONDS:
            return False
        self._last_report = now
        return True

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def share_done(self) -> float:
        """Of all steps, in [0, 1]."""
        return self.steps_done / self.steps

    def images_per_second(self) -> float:
        """Each sample of a batch counted once."""
        return self.steps_done * self._images_per_step / max(self.seconds(), 1e-9)

    def eta_seconds(self) -> float:
        """At the mean speed so far."""
        return self.seconds() / max(self.steps_done, 1) * (self.steps - self.steps_done)


def mean_losses(epoch: int, sums: Mapping[str, Tensor], count: int) -> dict[str, float]:
    """Scalars `sums` of `count` steps of 0-based `epoch`, divided, in one transfer from the device.

    Raises NonFiniteLossError.
    """
    values = torch.stack(list(sums.values())).div(count).tolist()
    means = dict(zip(sums, values, strict=True))
    if not all(map(math.isfinite, values)):
        raise NonFiniteLossError(epoch + 1, means)
    return means


def lowest(scores: list[float]) -> int | None:
    """Position of the lowest score, the first one on ties; one that is not a number never wins."""
    numbers = [i for i, score in enumerate(scores) if not math.isnan(score)]
    return min(numbers, key=scores.__getitem__, default=None)
