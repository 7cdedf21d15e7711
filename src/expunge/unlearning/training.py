"""The one training loop, for pre-training and for every unlearning method.

Knows no queues or databases: it takes image sets, reports progress to a callable, and returns a
learner. The one file it may keep is its snapshot.
"""

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from expunge.unlearning.batch_norm import estimate_statistics
from expunge.unlearning.catalog import (
    EncoderSpec,
    PretrainParams,
    RunParams,
    UnlearnParams,
    parse_params,
    pretrain_params,
)
from expunge.unlearning.data.batches import BatchStream, StepIndices, plan_batches
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.source import Source, check_samples, check_size
from expunge.unlearning.errors import (
    EmptySetError,
    NonFiniteWeightsError,
    explained,
)
from expunge.unlearning.frameworks import Learner, MoCo, build
from expunge.unlearning.frameworks.architectures import lay_out
from expunge.unlearning.hardware import autocast, precision_for, resolve_device, seeded
from expunge.unlearning.methods import Batch, SetSizes, make_method, own_objective
from expunge.unlearning.optimisation import learning_rate, make_optimiser
from expunge.unlearning.progress import (
    Clock,
    OnProgress,
    Progress,
    RunStopped,
    TrainingResult,
    lowest,
    mean_losses,
)
from expunge.unlearning.queue_init import fill_queue
from expunge.unlearning.recomputation import recomputing
from expunge.unlearning.snapshots import RunState, SnapshotFile, Snapshots, digest_of

__all__ = ["OnProgress", "Progress", "Snapshots", "TrainingResult", "pretrain", "unlearn"]

Losses = Callable[[Learner, Batch], dict[str, Tensor]]
Score = Callable[[Learner], float]
"""Lower is better."""


def pretrain(
    spec: EncoderSpec,
    images: ImageSet,
    params: PretrainParams | Mapping[str, Any],
    *,
    seed: int,
    device: str = "auto",
    on_progress: OnProgress | None = None,
    snapshots: Snapshots | None = None,
    recompute: bool = False,
) -> TrainingResult:
    """Train fresh weights on `images` with the framework's own objective.

    `params` as a mapping are completed with the framework's defaults. The same arguments on the same
    hardware give the same weights, resumed from a snapshot or not. `on_progress` may raise to stop.
    With `recompute` it needs less memory and more time. Raises RunStopped as `snapshots` say,
    TrainingError, or ValidationError for bad parameters.
    """
    given = params.model_dump() if isinstance(params, BaseModel) else params
    checked = pretrain_params(spec.framework, given)
    run = _Run("pretrain", checked, seed, device, on_progress, recompute=recompute)
    return run.train(build(spec, seed=seed), images, None, own_objective, snapshots=snapshots)


def unlearn(
    learner: Learner,
    retain: ImageSet,
    forget: ImageSet,
    method: str,
    params: BaseModel | Mapping[str, Any],
    *,
    seed: int,
    device: str = "auto",
    on_progress: OnProgress | None = None,
    score: Score | None = None,
    snapshots: Snapshots | None = None,
    recompute: bool = False,
) -> TrainingResult:
    """Make a copy of `learner` forget `forget`, keeping `retain`; the given learner stays as it is.

    `params` as a mapping are completed with the method's defaults for the framework. What the
    learner stores of the forgotten samples is purged before the first step and after the last.
    With `score`, it is asked after each epoch, and the weights of the epoch with the lowest answer
    are returned; the last ones where no answer is a number. The same arguments on the same hardware
    give the same weights, resumed from a snapshot or not. `on_progress` may raise to stop. Raises
    RunStopped as `snapshots` say, TrainingError; UnknownMethod, MethodNotForFramework or
    ValidationError for bad parameters.
    """
    if len(forget) == 0:
        raise EmptySetError("unlearn")
    for images in (retain, forget):
        check_size(images, learner.spec)
    given = params.model_dump() if isinstance(params, BaseModel) else params
    checked = parse_params(method, learner.spec.framework, given)
    chosen = make_method(method, checked)
    sizes = SetSizes(len(retain), len(forget))
    run = _Run(method, checked, seed, device, on_progress, recompute=recompute)
    trained = chosen.start(learner, seed)
    trained.purge(forget.ids)
    started = time.perf_counter()
    if isinstance(trained, MoCo) and isinstance(checked, UnlearnParams):
        fill_queue(
            trained.to(run.device),
            retain,
            checked.queue_init or ("retain" if trained.queue_is_empty else "checkpoint"),
            seed,
        )
    beside = time.perf_counter() - started
    result = run.train(
        trained,
        retain if chosen.uses_retain_set else None,
        forget if chosen.uses_unlearn_set else None,
        lambda current, batch: chosen.losses(current, batch, sizes),
        third_view=chosen.uses_third_view,
        other_view=chosen.uses_other_view,
        swap_positives=chosen.swaps_positives,
        score=score,
        snapshots=snapshots,
    )
    result.learner.purge(forget.ids)
    started = time.perf_counter()
    if isinstance(checked, UnlearnParams) and checked.bn_statistics == "retain":
        estimate_statistics(result.learner, retain, seed=seed, device=run.device)
    beside += time.perf_counter() - started
    return replace(result, seconds=result.seconds + beside)


class _Run:
    """One run of the loop: fixed settings, then `train` once."""

    def __init__(
        self,
        phase: str,
        params: RunParams,
        seed: int,
        device: str,
        on_progress: OnProgress | None,
        *,
        recompute: bool,
    ) -> None:
        self.phase = phase
        self.params = params
        self.seed = seed
        self.device = resolve_device(device)
        self.precision = precision_for(self.device)
        self.on_progress = on_progress
        self.recompute = recompute

    def train(
        self,
        learner: Learner,
        retain: ImageSet | None,
        forget: ImageSet | None,
        losses: Losses,
        *,
        third_view: bool = False,
        other_view: bool = False,
        swap_positives: bool = False,
        score: Score | None = None,
        snapshots: Snapshots | None = None,
    ) -> TrainingResult:
        """Train `learner` in place, on this run's device, and return it on the CPU in eval mode."""
        if retain is not None and len(retain) == 0:
            raise EmptySetError("training" if self.phase == "pretrain" else "retain")
        sets = [images for images in (retain, forget) if images is not None]
        for images in sets:
            check_samples(images, learner.spec)
        retain_size, unlearn_size = (0 if s is None else len(s) for s in (retain, forget))
        plan = plan_batches(
            retain_size, unlearn_size, self.params.batch_size, multiple=learner.bn_splits
        )
        stream = BatchStream(
            plan, retain_size, unlearn_size, seed=self.seed, swap_positives=swap_positives
        )
        samples = sets[0] if len(sets) == 1 else ImageSet.concat(sets)
        source = Source(
            samples.to(self.device),
            retain_size,
            learner.spec,
            seed=self.seed,
            third_view=third_view,
            other_view=other_view,
        )
        learner = learner.to(self.device).train()
        lay_out(learner, bn_splits=learner.bn_splits)
        file = None
        if snapshots is not None:
            identity = self._identity(learner, samples, retain_size, scored=score is not None)
            file = SnapshotFile(snapshots, identity)
        loop = _Loop(
            self,
            learner=learner,
            stream=stream,
            source=source,
            losses=losses,
            clock=Clock(plan, self.params.epochs),
            file=file,
        )
        memory = recomputing(learner) if self.recompute else nullcontext()
        with seeded(self.seed, self.device), memory:
            state = loop.run(score)
        if file is not None:
            file.remove()
        best = lowest(state.scores)
        if state.best is not None:
            learner.load_state_dict(state.best)
        _check_finite(learner)
        return TrainingResult(
            learner=learner.to("cpu").eval(),
            history=state.history,
            seconds=loop.clock.seconds(),
            steps=loop.clock.steps_done,
            images_per_second=loop.clock.images_per_second(),
            device=self.device.type,
            precision=self.precision,
            scores=state.scores,
            best_epoch=None if best is None else 1 + best,
        )

    def _identity(
        self, learner: Learner, samples: ImageSet, retain: int, *, scored: bool
    ) -> dict[str, Any]:
        """What a snapshot must share with the run that resumes from it."""
        data = {"ids": samples.ids, "labels": samples.labels}
        if samples.captions is not None:
            data |= vars(samples.captions)
        return {
            "phase": self.phase,
            "params": self.params.model_dump(),
            "seed": self.seed,
            "spec": learner.spec.model_dump(mode="json"),
            "start": digest_of(learner.state_dict()),
            "samples": digest_of(data),
            "retain": retain,
            "scored": scored,
            "device": self.device.type,
            "precision": self.precision,
        }


class _Loop:
    """The steps of one run, from its start or its snapshot to its end."""

    def __init__(
        self,
        settings: _Run,
        *,
        learner: Learner,
        stream: BatchStream,
        source: Source,
        losses: Losses,
        clock: Clock,
        file: SnapshotFile | None,
    ) -> None:
        self.settings = settings
        self.learner = learner
        self.stream = stream
        self.source = source
        self.losses = losses
        self.clock = clock
        self.file = file
        self.optimiser = make_optimiser(learner, settings.params)
        self.state = RunState(stream=stream.state())

    def run(self, score: Score | None) -> RunState:
        """Take all steps that are left."""
        restored = self.file and self.file.restore(
            self.learner, self.optimiser, self.settings.device
        )
        if restored:
            self.state = restored
            self.stream.restore(restored.stream)
            self.clock.resume(restored.seconds, restored.steps_done)
        while self.state.epoch < self.settings.params.epochs:
            self._epoch(score)
        return self.state

    def _epoch(self, score: Score | None) -> None:
        state, params = self.state, self.settings.params
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(params, state.epoch)
        steps = self.stream.epoch(self.settings.device)
        for indices in islice(steps, state.steps_in_epoch, None):
            terms = self._step(indices)
            for name, value in terms.items():
                state.sums[name] = state.sums.get(name, 0) + value.detach()
            state.steps_in_epoch += 1
            state.steps_done += 1
            self.clock.steps_done += 1
            if self.clock.due():
                self._report(mean_losses(state.epoch, state.sums, state.steps_in_epoch))
            if self.file is not None:
                self._keep(self.file)
        means = mean_losses(state.epoch, state.sums, state.steps_in_epoch)
        if score is not None:
            self._score(score)
        state.history.append(means)
        state.epoch, state.steps_in_epoch, state.sums = state.epoch + 1, 0, {}
        state.stream = self.stream.state()
        if state.epoch == params.epochs:
            self._report(means)

    def _step(self, indices: StepIndices) -> dict[str, Tensor]:
        self.learner.advance(self.clock.share_done())
        with autocast(self.settings.device, self.settings.precision):
            batch = self.source.batch(indices, self.clock.steps_done, self.state.epoch)
            with explained(len(batch.first)):
                terms = self.losses(self.learner, batch)
        self.optimiser.zero_grad()
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return terms

    def _score(self, score: Score) -> None:
        started = time.perf_counter()
        # A score that draws at random must not change the steps that follow.
        with seeded(self.settings.seed, self.settings.device):
            self.state.scores.append(score(self.learner))
        self.learner.train()
        if lowest(self.state.scores) == len(self.state.scores) - 1:
            self.state.best = copy.deepcopy(self.learner.state_dict())
        self.clock.leave_out(time.perf_counter() - started)

    def _keep(self, file: SnapshotFile) -> None:
        stop = file.should_stop()
        if stop:
            # A run that has failed says so instead of stopping.
            mean_losses(self.state.epoch, self.state.sums, self.state.steps_in_epoch)
        if stop or file.due():
            self._snapshot()
        if stop:
            raise RunStopped

    def _snapshot(self) -> None:
        if self.file is not None:
            state = replace(self.state, seconds=self.clock.seconds())
            self.file.write(state, self.learner, self.optimiser, self.settings.device)

    def _report(self, losses: dict[str, float]) -> None:
        if self.settings.on_progress is None:
            return
        progress = Progress(
            phase=self.settings.phase,
            epoch=self.state.epoch,
            epochs=self.settings.params.epochs,
            step=self.clock.steps_done,
            steps=self.clock.steps,
            losses=losses,
            images_per_second=self.clock.images_per_second(),
            eta_seconds=self.clock.eta_seconds(),
        )
        try:
            self.settings.on_progress(progress)
        except BaseException:
            self._snapshot()
            raise


def _check_finite(learner: Learner) -> None:
    """Raises NonFiniteWeightsError: a loss is that of the weights before its step."""
    tensors = {n: t for n, t in learner.state_dict().items() if t.is_floating_point()}
    finite = torch.stack([t.isfinite().all() for t in tensors.values()]).tolist()
    broken = [name for name, fine in zip(tensors, finite, strict=True) if not fine]
    if broken:
        raise NonFiniteWeightsError(broken)
