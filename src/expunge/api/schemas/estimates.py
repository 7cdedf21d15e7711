"""Estimates of what a removal would take."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.requests import MAX_METHOD_CHARS
from expunge.api.schemas.values import EXAMPLE_HEX, Body, DatasetId, ModelId, example
from expunge.registry import estimates
from expunge.registry.settings import Settings

MAX_METHODS = 64
SECONDS_PER_HOUR = 3600


class Choice(Body):
    """A method, with parameters where the defaults are not meant."""

    method: Annotated[str, Field(max_length=MAX_METHOD_CHARS)]
    params: dict[str, Any] = Field(default={})


class NewEstimate(Body):
    """What would be forgotten, and the ways to do it that are to be estimated."""

    model_config = ConfigDict(
        json_schema_extra=example(
            model_id=f"mdl_{EXAMPLE_HEX}",
            dataset_ids=[f"dst_{EXAMPLE_HEX}"],
            methods=[{"method": "retrain", "params": {"epochs": 200}}],
        )
    )

    model_id: ModelId
    dataset_ids: list[DatasetId]
    methods: Annotated[list[Choice], Field(min_length=1, max_length=MAX_METHODS)] | None = Field(
        default=None, description="Left out: every method for the model's framework, by default."
    )

    def chosen(self) -> list[tuple[str, dict[str, Any]]] | None:
        """Methods with the given parameters; None for all."""
        if self.methods is None:
            return None
        return [(each.method, each.params) for each in self.methods]


class Span(BaseModel):
    """Seconds, to two significant digits; `low` to `high` is where most jobs would end."""

    expected: float
    low: float
    high: float


class Cost(BaseModel):
    """At the operator's price of a device's hour, for the expected seconds."""

    amount: float
    currency: str


class Estimate(BaseModel):
    """What one method would take."""

    method: str
    params: dict[str, Any] = Field(description="Completed with the method's defaults.")
    seconds: Span | None = Field(
        description="Of training; null where nothing comparable was ever run."
    )
    waiting_seconds: float | None = Field(
        description="Until it starts: the policy's window, or the jobs ahead if they take longer; "
        "not what an owner takes to approve. Null if nobody knows."
    )
    cost: Cost | None = Field(description="Null if the operator names no price.")
    basis: estimates.Basis
    n_jobs: int | None = Field(
        description="Jobs that it rests on; told to the model's owner, of the model's own jobs."
    )

    @classmethod
    def of(cls, found: estimates.Estimate, settings: Settings) -> Self:
        """The estimate as it is told."""
        seconds = found.seconds
        return cls(
            method=found.method,
            params=found.params,
            seconds=seconds
            and Span(
                expected=_rounded(seconds.expected),
                low=_rounded(seconds.low),
                high=_rounded(seconds.high),
            ),
            waiting_seconds=found.waiting_seconds
            if found.waiting_seconds is None
            else _rounded(found.waiting_seconds),
            cost=seconds and _cost(seconds.expected, settings),
            basis=found.basis,
            n_jobs=found.n_jobs,
        )


class Estimates(BaseModel):
    """By method."""

    items: list[Estimate]


def _cost(seconds: float, settings: Settings) -> Cost | None:
    price = settings.price_per_device_hour
    amount = _rounded(price * seconds / SECONDS_PER_HOUR)
    return Cost(amount=amount, currency=settings.currency) if price else None


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
