"""Comparisons of unlearning methods for one removal: what a model's owner may ask, and the recorded result.

Never runs one, and never changes the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy.orm import Session

from expunge.registry import datasets, idempotency, jobs, log, models, orphans, parameters, waiting
from expunge.registry.errors import (
    AlreadyForgotten,
    Conflict,
    DomainError,
    Invalid,
    InvalidParameters,
    NotInTrainingData,
    UnknownMethod,
)
from expunge.registry.ids import Prefix, new_id
from expunge.registry.tables import Checkpoint, Comparison, Job, JobKind, Model, Party
from expunge.unlearning import candidates
from expunge.unlearning.catalog import METHODS, EncoderSpec
from expunge.unlearning.catalog import UnknownMethod as UnknownMethodId

MAX_SEEDS = 10
MAX_METHOD_CHARS = 80

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class Search(BaseModel):
    """A search over ranges of a method's parameters instead of given settings."""

    model_config = ConfigDict(extra="forbid")

    method: Annotated[str, Field(max_length=MAX_METHOD_CHARS)]
    params: dict[str, Any] = Field(default={}, description="Fixed ones; the rest defaults.")
    trials: Annotated[int, Field(strict=True, ge=1, le=candidates.MAX_TRIALS)] = 10
    ranges: dict[str, candidates.Range] = Field(
        default={}, description="Left out: the ranges that the method's paper searched."
    )
    objective: candidates.Objective = Field(
        default="proxy",
        description="proxy: forgotten samples should look like never seen ones. "
        "retrain: the average gap to Retrain, with `with_retrain`, and only then.",
    )


class Plan(BaseModel):
    """What a comparison runs beside the checkpoint as it is."""

    model_config = ConfigDict(extra="forbid")

    methods: (
        Annotated[
            list[candidates.CandidateSpec],
            Field(min_length=1, max_length=candidates.MAX_CANDIDATES),
        ]
        | None
    ) = Field(default=None, description="The settings to compare; either this or `search`.")
    search: Search | None = None
    with_retrain: bool = Field(
        default=False,
        description="Also train fresh weights on the retained data, the yardstick of all gaps.",
    )
    retrain_params: dict[str, Any] = Field(
        default={}, description="Of Retrain; best those the model was trained with."
    )
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS)] = Field(
        default=[0], description="Everything is run once per seed."
    )
    relearn: bool = Field(
        default=False, description="Also measure how soon the forgotten samples are learned again."
    )
    keep_best: bool = Field(
        default=False,
        description="Measure each setting after every epoch and keep the epoch with the smallest "
        "proxy gap; the time that takes is not counted.",
    )
    protocol: Literal["corrected", "released"] = Field(
        default="corrected", description="Of the measurements: as in the paper's code, or better."
    )

    @model_validator(mode="after")
    def _methods_or_search(self) -> Self:
        if (self.methods is None) == (self.search is None):
            raise ValueError("give either methods or search")
        return self


def create(
    session: Session,
    owner: Party,
    *,
    model_id: str,
    dataset_ids: Sequence[str],
    plan: Plan,
    idempotency_key: str | None = None,
) -> Comparison:
    """Queue a comparison on the model's head of ways to forget these data sets.

    A call with the key and content of an earlier one returns the earlier comparison.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound: not an own model.
        Conflict: it has no checkpoint or no control data set, nothing would be retained, or
            control images or data that it retains may not be used any more.
        Invalid, UnknownMethod, InvalidParameters: the plan breaks a rule; the pointer says which.
        NotInTrainingData, AlreadyForgotten: the head does not hold one of the data sets.
    """
    comparison_id = new_id(Prefix.COMPARISON)
    call = idempotency.Call(
        owner.id,
        idempotency_key,
        "create-comparison",
        [model_id, sorted(dataset_ids), plan.model_dump(mode="json")],
    )
    if earlier := idempotency.remember(session, call, comparison_id):
        return session.get_one(Comparison, earlier)
    model = models.owned(session, owner, model_id)
    settings = _settings(EncoderSpec.model_validate(model.encoder), plan)
    models.check_distinct(dataset_ids)
    if model.head_checkpoint_id is None:
        raise Conflict(f"Model {model.id} has no checkpoint yet; there is nothing to compare on.")
    if model.control_dataset_id is None:
        raise Conflict(
            f"Model {model.id} has no control data set, which serves as the test set: TA and the "
            f"attacks need images never trained on. PUT /models/{model.id}/control names one."
        )
    check_test_set(session, model, model.control_dataset_id)
    retained(session, model, model.head_checkpoint_id, dataset_ids)
    job = waiting.enqueue(
        session,
        JobKind.COMPARE,
        actor=owner.id,
        owner_id=owner.id,
        params={"comparison_id": comparison_id},
        model_id=model.id,
        base_checkpoint_id=model.head_checkpoint_id,
    )
    comparison = Comparison(
        id=comparison_id,
        owner_id=owner.id,
        model_id=model.id,
        job_id=job.id,
        checkpoint_id=model.head_checkpoint_id,
        settings=settings
        | {"dataset_ids": sorted(dataset_ids), "control_dataset_id": model.control_dataset_id},
    )
    session.add(comparison)
    log.append(
        session, owner.id, comparison.id, "created", model_id=model.id, dataset_ids=[*dataset_ids]
    )
    session.flush()
    return comparison


def check_test_set(session: Session, model: Model, dataset_id: str) -> None:
    """Raise Conflict if the owner of these control images withdrew them since they were named.

    Asked when a comparison is made and again when it starts.
    """
    owner = session.get_one(Party, model.owner_id)
    try:
        datasets.usable(session, owner, [dataset_id])
    except DomainError as error:
        raise Conflict(
            f"Control data set {dataset_id}, which serves as the test set, may not be used any more: "
            f"its owner withdrew the grant. PUT /models/{model.id}/control names another one.",
            dataset_ids=[dataset_id],
        ) from error


def retained(
    session: Session, model: Model, checkpoint_id: str, dataset_ids: Sequence[str]
) -> list[str]:
    """Ids of the data sets that the checkpoint keeps when it forgets these, if all may be trained on.

    Asked when a comparison is made and again when it starts. What is to be forgotten is trained
    on by several methods: that is allowed as long as the model's head still holds it.

    Raises:
        NotInTrainingData, AlreadyForgotten: the checkpoint, or by now the head, does not hold one.
        Conflict: nothing is left, or its owner's consent is.
    """
    checkpoint = session.get_one(Checkpoint, checkpoint_id)
    head = session.get_one(Checkpoint, model.head_checkpoint_id)
    if foreign := sorted(set(dataset_ids) - set(checkpoint.trained_on)):
        raise NotInTrainingData(
            f"Model {model.id} was not trained on {', '.join(foreign)}.", dataset_ids=foreign
        )
    if gone := sorted(set(dataset_ids) - (set(checkpoint.retained) & set(head.retained))):
        raise AlreadyForgotten(
            f"Model {model.id} has forgotten {', '.join(gone)} already.", dataset_ids=gone
        )
    kept = sorted(set(checkpoint.retained) - set(dataset_ids))
    if not kept:
        raise Conflict(
            f"Model {model.id} retains nothing but these data sets: there is nothing to train on.",
        )
    owner = session.get_one(Party, model.owner_id)
    for dataset_id in kept:
        try:
            models.check_training_data(session, owner, model, [dataset_id])
        except DomainError as error:
            raise Conflict(
                f"Every comparison trains on what is retained, and data set {dataset_id} may not "
                "be trained on any more: its owner withdrew the grant or asked to be forgotten. "
                "Name it in dataset_ids as well.",
                dataset_ids=[dataset_id],
            ) from error
    return kept


def record(
    session: Session, lease: jobs.Lease, result: dict[str, Any], objects: dict[str, str]
) -> None:
    """End a comparison's job with its result and the keys of its files.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job: Job = jobs.succeed(session, lease)
    comparison = session.get_one(Comparison, job.params["comparison_id"])
    comparison.result = result
    comparison.objects = objects
    orphans.named(session, list(objects.values()))


def _settings(encoder: EncoderSpec, plan: Plan) -> dict[str, Any]:
    """The plan with every parameter filled in, as the answer shows it and the worker runs it."""
    if len(set(plan.seeds)) != len(plan.seeds):
        raise _invalid("/seeds", "seeds names a seed twice; each is run once.")
    if plan.retrain_params and not plan.with_retrain:
        raise _invalid("/retrain_params", "retrain_params are given, but with_retrain is false.")
    retrain = None
    if plan.with_retrain:
        retrain = parameters.complete(
            candidates.REFERENCE_METHOD,
            encoder.framework,
            plan.retrain_params,
            member="/retrain_params",
        )
    settings: list[candidates.Candidate] = []
    if plan.methods is not None:
        with _refusals("/methods", encoder.framework, [each.method for each in plan.methods]):
            settings = candidates.expand(plan.methods, encoder.framework)
    return {
        "candidates": [each.model_dump(mode="json") for each in settings],
        "search": _search(encoder, plan.search, with_retrain=plan.with_retrain),
        "with_retrain": plan.with_retrain,
        "retrain_params": retrain,
        "seeds": plan.seeds,
        "relearn": plan.relearn,
        "keep_best": plan.keep_best,
        "protocol": plan.protocol,
    }


def _search(
    encoder: EncoderSpec, search: Search | None, *, with_retrain: bool
) -> dict[str, Any] | None:
    if search is None:
        return None
    with _refusals("/search", encoder.framework, [search.method]):
        ranges = candidates.search_ranges(
            search.method, encoder.framework, search.ranges, fixed=search.params
        )
    if (search.objective == "retrain") != with_retrain:
        raise _invalid(
            "/search/objective",
            "A search has the objective retrain with with_retrain: true, and proxy without.",
        )
    return search.model_copy(update={"ranges": ranges}).model_dump(mode="json")


@contextmanager
def _refusals(pointer: str, framework: str, methods: Sequence[str]) -> Iterator[None]:
    """Turn what the library refuses into problems that point into the body, with bounds."""
    try:
        yield
    except candidates.InvalidCandidates as error:
        refusal: type[Invalid] = Invalid
        extensions: dict[str, Any] = {}
        if isinstance(error.__cause__, UnknownMethodId):
            refusal, extensions = UnknownMethod, {"allowed": sorted(METHODS)}
        elif isinstance(error.__cause__, ValidationError):
            refusal = InvalidParameters
        raise refusal(
            str(error),
            errors=[
                {
                    "pointer": "/".join([pointer, *map(str, each.location)]),
                    "message": each.message,
                    **_bounds(each.location, framework, methods),
                }
                for each in error.problems
            ],
            **extensions,
        ) from error


def _bounds(
    location: candidates.Location, framework: str, methods: Sequence[str]
) -> dict[str, Any]:
    """What is allowed for the parameter at `[entry,] params|grid|ranges, name`; nothing elsewhere.

    Nor of a method that does not exist or is not for the framework: its name is refused later.
    """
    match location:
        case (int(entry), str(), str(name), *_):
            method = methods[entry]
        case (str(), str(name), *_):
            method = methods[0]
        case _:
            return {}
    known = METHODS.get(method)
    if known is None or framework not in known.frameworks:
        return {}
    return {"allowed": parameters.allowed(method, framework, name)}


def _invalid(pointer: str, message: str) -> Invalid:
    return Invalid(message, errors=[{"pointer": pointer, "message": message}])
