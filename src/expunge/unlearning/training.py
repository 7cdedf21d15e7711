"""The one training loop, for pre-training and for every unlearning method.

Knows no files, queues or databases: it takes image sets, reports progress to a callable, and
returns a learner.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat

import torch
from pydantic import BaseModel
from torch import Tensor

from expunge.unlearning.catalog import (
    EncoderSpec,
    PretrainParams,
    SgdParams,
    parse_params,
)
from expunge.unlearning.data.batches import BatchPlan, BatchStream, StepIndices, plan_batches
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views
from expunge.unlearning.errors import EmptySetError, ImageSizeError, NonFiniteLossError
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.frameworks.architectures import lay_out
from expunge.unlearning.hardware import autocast, precision_for, resolve_device, seeded
from expunge.unlearning.methods import Batch, SetSizes, make_method, own_objective

REPORT_SECONDS = 0.5
"""At least this long between two looks at the losses, each of which waits for the device."""
VIEWS_PER_STEP = 3
"""View numbers reserved for each step; the third is made only where the method asks."""

Losses = Callable[[Learner, Batch], dict[str, Tensor]]


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
    steps: int
    images_per_second: float
    device: str
    precision: str


OnProgress = Callable[[Progress], None]


def pretrain(
    spec: EncoderSpec,
    images: ImageSet,
    params: PretrainParams,
    *,
    seed: int,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> TrainingResult:
    """Train fresh weights on `images` with the framework's own objective.

    The same arguments on the same hardware give the same weights. `on_progress` may raise to
    stop. Raises TrainingError.
    """
    run = _Run("pretrain", params, seed, resolve_device(device), on_progress)
    return run.train(build(spec, seed=seed), images, None, own_objective)


def unlearn(
    learner: Learner,
    retain: ImageSet,
    forget: ImageSet,
    method: str,
    params: BaseModel,
    *,
    seed: int,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> TrainingResult:
    """Make a copy of `learner` forget `forget`, keeping `retain`; the given learner stays as it is.

    What the learner stores of the forgotten samples is purged before the first step and after the
    last. The same arguments on the same hardware give the same weights. `on_progress` may raise to
    stop. Raises TrainingError; UnknownMethod, MethodNotForFramework or ValidationError for bad
    parameters.
    """
    if len(forget) == 0:
        raise EmptySetError("unlearn")
    checked = parse_params(method, learner.spec.framework, params.model_dump())
    chosen = make_method(method, checked)
    sizes = SetSizes(len(retain), len(forget))
    run = _Run(method, checked, seed, resolve_device(device), on_progress)
    trained = chosen.start(learner, seed)
    trained.purge(forget.ids)
    result = run.train(
        trained,
        retain if chosen.uses_retain_set else None,
        forget if chosen.uses_unlearn_set else None,
        lambda current, batch: chosen.losses(current, batch, sizes),
        third_view=chosen.uses_third_view,
        swap_positives=chosen.swaps_positives,
    )
    result.learner.purge(forget.ids)
    return result


class _Run:
    """One run of the loop: fixed settings, then `train` once."""

    def __init__(
        self,
        phase: str,
        params: SgdParams,
        seed: int,
        device: torch.device,
        on_progress: OnProgress | None,
    ) -> None:
        self.phase = phase
        self.params = params
        self.seed = seed
        self.device = device
        self.precision = precision_for(device)
        self.on_progress = on_progress

    def train(
        self,
        learner: Learner,
        retain: ImageSet | None,
        forget: ImageSet | None,
        losses: Losses,
        *,
        third_view: bool = False,
        swap_positives: bool = False,
    ) -> TrainingResult:
        """Train `learner` in place, on this run's device, and return it on the CPU in eval mode."""
        if retain is not None and len(retain) == 0:
            raise EmptySetError("training" if self.phase == "pretrain" else "retain")
        spec = learner.spec
        sets = [images for images in (retain, forget) if images is not None]
        for images in sets:
            if images.image_size != spec.image_size:
                raise ImageSizeError(images.image_size, spec.image_size)
        retain_size, unlearn_size = (0 if s is None else len(s) for s in (retain, forget))
        plan = plan_batches(
            retain_size, unlearn_size, self.params.batch_size, multiple=learner.bn_splits
        )
        stream = BatchStream(
            plan, retain_size, unlearn_size, seed=self.seed, swap_positives=swap_positives
        )
        samples = sets[0] if len(sets) == 1 else ImageSet.concat(sets)
        views = Views(spec.image_size, spec.mean, spec.std, seed=self.seed)
        source = _Source(samples.to(self.device), retain_size, views, third_view=third_view)
        learner = learner.to(self.device).train()
        lay_out(learner, bn_splits=learner.bn_splits)
        optimiser = self._optimiser(learner)
        clock = _Clock(plan, self.params.epochs)

        def take_step(indices: StepIndices, epoch: int) -> dict[str, Tensor]:
            learner.advance()
            with autocast(self.device, self.precision):
                terms = losses(learner, source.batch(indices, clock.steps_done, epoch))
            optimiser.zero_grad()
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            clock.steps_done += 1
            return terms

        history = []
        with seeded(self.seed, self.device):
            for epoch in range(self.params.epochs):
                for group in optimiser.param_groups:
                    group["lr"] = self._learning_rate(epoch)
                terms = map(take_step, stream.epoch(self.device), repeat(epoch))
                history.append(self._epoch(epoch, terms, clock))
        return TrainingResult(
            learner=learner.to("cpu").eval(),
            history=history,
            seconds=clock.seconds(),
            steps=clock.steps_done,
            images_per_second=clock.images_per_second(),
            device=self.device.type,
            precision=self.precision,
        )

    def _optimiser(self, learner: Learner) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [p for p in learner.parameters() if p.requires_grad],
            lr=self.params.learning_rate,
            momentum=self.params.momentum,
            weight_decay=self.params.weight_decay,
            fused=True,
        )

    def _epoch(
        self, epoch: int, steps: Iterable[dict[str, Tensor]], clock: "_Clock"
    ) -> dict[str, float]:
        """Take the steps of an epoch; return the mean of each of their losses."""
        sums: dict[str, Tensor] = {}
        taken = 0
        for terms in steps:
            taken += 1
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if clock.due():
                self._report(epoch, _means(epoch, sums, taken), clock)
        means = _means(epoch, sums, taken)
        if epoch + 1 == self.params.epochs:
            self._report(epoch + 1, means, clock)
        return means

    def _learning_rate(self, epoch: int) -> float:
        rate = self.params.learning_rate
        if isinstance(self.params, PretrainParams) and self.params.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * epoch / self.params.epochs))
        return rate

    def _report(self, epoch: int, losses: dict[str, float], clock: "_Clock") -> None:
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    phase=self.phase,
                    epoch=epoch,
                    epochs=self.params.epochs,
                    step=clock.steps_done,
                    steps=clock.steps,
                    losses=losses,
                    images_per_second=clock.images_per_second(),
                    eta_seconds=clock.eta_seconds(),
                )
            )


class _Source:
    """Batches of views from samples on the device: retained ones first, then unlearn ones."""

    def __init__(self, samples: ImageSet, retain: int, views: Views, *, third_view: bool) -> None:
        self.samples = samples
        self.retain = retain
        self.views = views
        self.third_view = third_view

    def batch(self, indices: StepIndices, step: int, epoch: int) -> Batch:
        unlearn = indices.unlearn + self.retain
        partner = indices.partner + self.retain
        second = torch.cat([indices.retain, partner])
        number = step * VIEWS_PER_STEP
        return Batch(
            first=self._view(torch.cat([indices.retain, unlearn]), number),
            second=self._view(second, number + 1),
            second_ids=self.samples.ids[second],
            retain=len(indices.retain),
            epoch=epoch,
            third=self._view(unlearn, number + 2) if self.third_view else None,
        )

    def _view(self, index: Tensor, number: int) -> Tensor:
        # Keyed by position: a sample that fills a small unlearn set twice needs two views.
        positions = torch.arange(len(index), device=index.device)
        return self.views(self.samples.images[index], positions, number)


class _Clock:
    """Time, steps and speed of a run."""

    def __init__(self, plan: BatchPlan, epochs: int) -> None:
        self.steps = plan.steps * epochs
        self.steps_done = 0
        self._images_per_step = plan.retain + plan.unlearn
        self._start = self._last_report = time.perf_counter()

    def due(self) -> bool:
        now = time.perf_counter()
        if now - self._last_report < REPORT_SECONDS:
            return False
        self._last_report = now
        return True

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def images_per_second(self) -> float:
        return self.steps_done * self._images_per_step / max(self.seconds(), 1e-9)

    def eta_seconds(self) -> float:
        return self.seconds() / max(self.steps_done, 1) * (self.steps - self.steps_done)


def _means(epoch: int, sums: dict[str, Tensor], count: int) -> dict[str, float]:
    """Mean losses, in one transfer from the device; raises NonFiniteLossError."""
    values = torch.stack(list(sums.values())).div(count).tolist()
    means = dict(zip(sums, values, strict=True))
    if not all(map(math.isfinite, values)):
        raise NonFiniteLossError(epoch + 1, means)
    return means
