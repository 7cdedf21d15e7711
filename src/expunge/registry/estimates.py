"""How long a removal would take and what it would cost, from what jobs really took. Promises and changes nothing."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from expunge.registry import models, parameters, policies, visibility
from expunge.registry.errors import AlreadyForgotten, Conflict, NotFound, NotInTrainingData
from expunge.registry.jobs import LIVE_STATES
from expunge.registry.lifecycles import JobState
from expunge.registry.tables import (
    MODEL_OWNER_KINDS,
    TRAINING_KINDS,
    Checkpoint,
    Dataset,
    Job,
    JobKind,
    Model,
    Party,
)
from expunge.unlearning.catalog import METHODS, EncoderSpec

NEWEST_JOBS = 20
"""Jobs that have succeeded, and whose speed counts."""
RELATIVE_COST = {"alignment_calibration": 1.2, "gradient_penalty": 12.0}
"""Time an image shown takes, against pre-training; 1 for every other method.

From benchmarks/results/epoch-cost-2-cores-amx.md: per retained image 1.33 (SimCLR) and 1.24 (MoCo), 14.1
and 11.6, where nine of ten images shown are retained.
"""
SHOW_BOTH_SETS = frozenset(
    {"alignment_calibration", "contrastive_unlearning", "gradient_penalty", "neg_grad"}
)
SHOW_UNLEARN_SET = frozenset({"gradient_ascent"})
"""Every other method shows the retain set alone."""

SPREAD_OF_METHOD = 1.25
"""Factor by which jobs of the same method on the same model differ, at least (benchmarks, 2 repeats)."""
SPREAD_OF_MODEL = 1.5
"""... of other methods on the same model."""
SPREAD_OF_ARCHITECTURE = 2.0
"""... on other models, which may have run on other hardware."""
TAILS = (0.1, 0.9)
"""Quantiles between which most of what was measured lies."""

Basis = Literal["this model's jobs", "jobs of this architecture", "none"]


@dataclass(frozen=True, slots=True)
class Run:
    """What a training job has to do, or has done: passes over how many samples."""

    method: str | None
    """None for pre-training."""
    epochs: int
    retain: int
    unlearn: int

    @property
    def work(self) -> float:
        """In images, as long as one takes in pre-training."""
        shown = self.retain
        if self.method in SHOW_BOTH_SETS:
            shown += self.unlearn
        elif self.method in SHOW_UNLEARN_SET:
            shown = self.unlearn
        return self.epochs * shown * RELATIVE_COST.get(self.method or "", 1.0)


@dataclass(frozen=True, slots=True)
class Done:
    """A job that has succeeded, and the seconds that its training took."""

    run: Run
    seconds: float


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one method would take."""

    method: str
    params: dict[str, Any]
    seconds: Span | None
    """Of training; none where nothing comparable was ever run."""
    waiting_seconds: float | None
    """Until it starts: batching window, or the jobs ahead if they take longer; none if nobody knows."""
    basis: Basis
    n_jobs: int | None
    """Of the basis; told to the model's owner, of own jobs only."""


def estimate(
    session: Session,
    reader: Party,
    *,
    model_id: str,
    dataset_ids: Sequence[str],
    methods: Sequence[tuple[str, dict[str, Any]]] | None,
) -> list[Estimate]:
    """What forgetting these data sets would take, by method; without `methods`, by all that fit the model.

    Raises:
        NotFound: the model cannot be seen, or, unless it is an own model, a data set is not an own one.
        Conflict: the model has no checkpoint.
        NotInTrainingData, AlreadyForgotten: the head does not hold one of the data sets.
        Invalid, UnknownMethod, InvalidParameters: the list of data sets is empty or has doubles, or
            a method does not fit.
    """
    model = visibility.one(session, visibility.models(reader), model_id)
    models.check_distinct(dataset_ids)
    head = _holding_head(session, reader, model, dataset_ids)
    encoder = EncoderSpec.model_validate(model.encoder)
    if methods is None:
        methods = [
            (name, {}) for name, each in METHODS.items() if encoder.framework in each.frameworks
        ]
    chosen = [
        (
            method,
            parameters.complete(
                method, encoder.framework, given, member=f"/methods/{number}/params"
            ),
        )
        for number, (method, given) in enumerate(methods)
    ]
    basis, done = _history(session, model, encoder)
    retain = _samples(session, set(head.retained) - set(dataset_ids))
    unlearn = _samples(session, dataset_ids)
    own = basis == "this model's jobs"
    queue = _Queue(session)
    return [
        Estimate(
            method=method,
            params=params,
            seconds=predict(Run(method, params["epochs"], retain, unlearn), done, own=own),
            waiting_seconds=queue.waiting_seconds(model, method, params),
            basis=basis,
            n_jobs=len(done) if own and reader.id == model.owner_id else None,
        )
        for method, params in chosen
    ]


def predict(run: Run, done: Sequence[Done], *, own: bool) -> Span | None:
    """Seconds of a run from jobs that were done, `own` ones of the same model or others.

    `expected = work / speed * correction`: speed is the median of work per second over all jobs,
    correction the median of actual over predicted seconds of own jobs of the same method, 1 if there
    are none. `low` and `high` span what the jobs differed by, and a factor in any case.
    """
    if not done or not run.work:
        return None
    speed = median(each.run.work / each.seconds for each in done)
    ratios = [each.seconds * speed / each.run.work for each in done]
    same = [
        ratio
        for each, ratio in zip(done, ratios, strict=True)
        if own and each.run.method == run.method
    ]
    correction = median(same) if same else 1.0
    expected = run.work / speed * correction
    least = SPREAD_OF_METHOD if same else SPREAD_OF_MODEL if own else SPREAD_OF_ARCHITECTURE
    differed = sorted(ratio / correction for ratio in (same or ratios))
    return Span(
        expected=expected,
        low=expected * min(1 / least, _quantile(differed, TAILS[0])),
        high=expected * max(least, _quantile(differed, TAILS[1])),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the ordered values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _holding_head(
    session: Session, reader: Party, model: Model, dataset_ids: Sequence[str]
) -> Checkpoint:
    if model.owner_id != reader.id:
        own = session.scalars(
            select(Dataset.id).where(Dataset.id.in_(dataset_ids), Dataset.owner_id == reader.id)
        )
        if missing := sorted(set(dataset_ids) - set(own)):
            raise NotFound.of("data set", missing)
    if model.head_checkpoint_id is None:
        raise Conflict(f"Model {model.id} has no checkpoint yet; there is nothing to forget.")
    head = session.get_one(Checkpoint, model.head_checkpoint_id)
    if foreign := sorted(set(dataset_ids) - set(head.trained_on)):
        raise NotInTrainingData(
            f"Model {model.id} was not trained on {', '.join(foreign)}.", dataset_ids=foreign
        )
    if gone := sorted(set(dataset_ids) & set(head.forgotten)):
        raise AlreadyForgotten(
            f"Model {model.id} has forgotten {', '.join(gone)} already.", dataset_ids=gone
        )
    return head


def _history(session: Session, model: Model, encoder: EncoderSpec) -> tuple[Basis, list[Done]]:
    """The newest jobs of the model, or else of all models of its framework, architecture and image size."""
    if done := _newest(session, select(Model.id).where(Model.id == model.id)):
        return "this model's jobs", done
    same = {name: model.encoder[name] for name in ("architecture", "image_size")}
    alike = select(Model.id).where(
        Model.encoder.contains(same | {"objective": {"framework": encoder.framework}})
    )
    done = _newest(session, alike)
    return ("jobs of this architecture", done) if done else ("none", [])


def _newest(session: Session, of_models: Select[str]) -> list[Done]:
    rows = session.execute(
        select(
            Job.params["method"].astext,
            Job.params["params"]["epochs"].as_integer(),
            Job.metrics["samples"],
            Job.metrics["seconds"].as_float(),
        )
        .where(
            Job.model_id.in_(of_models),
            Job.kind.in_(TRAINING_KINDS),
            Job.state == JobState.SUCCEEDED,
            Job.metrics["samples"].is_not(None),
            Job.metrics["seconds"].as_float() > 0,
        )
        .order_by(Job.finished_at.desc())
        .limit(NEWEST_JOBS)
    )
    found = (
        Done(Run(method, epochs, samples.get("retain", 0), samples.get("unlearn", 0)), seconds)
        for method, epochs, samples, seconds in rows
    )
    return [each for each in found if each.run.work]


def _samples(session: Session, dataset_ids: Collection[str]) -> int:
    counted = select(func.sum(Dataset.samples)).where(Dataset.id.in_(dataset_ids))
    return int(session.scalar(counted) or 0)


class _Queue:
    """Training work of all models that waits or runs now."""

    def __init__(self, session: Session) -> None:
        self._session = session
        found = session.execute(
            select(Job, Job.due_at <= func.now()).where(
                Job.state.in_((JobState.QUEUED, *LIVE_STATES)),
                Job.kind.in_(MODEL_OWNER_KINDS),
            )
        ).all()
        self._live = [job for job, _ in found if job.state in LIVE_STATES]
        self._training = [job for job, _ in found if job.kind in TRAINING_KINDS]
        busy = {job.model_id for job in self._live if job.kind in TRAINING_KINDS}
        self._held_up = [
            job
            for job, due in found
            if due and job.kind in TRAINING_KINDS and job.model_id not in busy
        ]
        """Jobs that would run if a worker were free."""
        self._usual: dict[tuple[str | None, str], float | None] = {}

    def waiting_seconds(self, model: Model, method: str, params: dict[str, Any]) -> float | None:
        """The policy's window or what is ahead, whichever is longer: the window passes while others work.

        Ahead are the model's own jobs, one after the other, except those that a request would
        join; and, where jobs of other models are held up, so that every worker is busy, all jobs
        together, shared among as many workers as are at work.
        """
        own = [
            job
            for job in self._training
            if job.model_id == model.id and not _joins(job, method, params)
        ]
        others = any(job.model_id != model.id for job in self._held_up)
        everything = [*self._live, *self._held_up] if others else []
        ahead, shared = self._total(own), self._total(everything)
        if ahead is None or shared is None:
            return None
        window = policies.of(model.policy).batch_window_seconds
        return max(window, ahead, shared / max(1, len(self._live)))

    def _total(self, rows: Iterable[Job]) -> float | None:
        seconds = [self._seconds_left(job) for job in rows]
        return None if None in seconds else sum(each for each in seconds if each is not None)

    def _seconds_left(self, job: Job) -> float | None:
        """As the running attempt reckons, else as long as such jobs usually take."""
        progress = job.progress if job.state in LIVE_STATES else None
        if progress is not None and progress.get("eta_seconds") is not None:
            return float(progress["eta_seconds"])
        kind = (job.model_id, job.kind)
        if kind not in self._usual:
            self._usual[kind] = self._usual_seconds(*kind)
        return self._usual[kind]

    def _usual_seconds(self, model_id: str | None, kind: str) -> float | None:
        """Median from start to end of the newest jobs of the model, or else of all models."""
        took = (
            select(Job.seconds_used)
            .where(Job.kind == kind, Job.state == JobState.SUCCEEDED, Job.seconds_used > 0)
            .order_by(Job.finished_at.desc())
            .limit(NEWEST_JOBS)
        )
        known = self._session.scalars(took.where(Job.model_id == model_id)).all()
        known = known or self._session.scalars(took).all()
        return median(known) if known else None


def _joins(job: Job, method: str, params: dict[str, Any]) -> bool:
    """Whether a request would become part of the job."""
    return (
        job.kind == JobKind.UNLEARN
        and job.started_at is None
        and (job.params["method"], job.params["params"]) == (method, params)
    )
