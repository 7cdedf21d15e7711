"""What a comparison can be asked for: settings of methods, grids of them, ranges to search.

Pydantic only. Never imports torch, so the API can refuse a comparison before any work is done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from expunge.unlearning.catalog import (
    METHODS,
    MethodNotForFramework,
    UnknownMethod,
    parse_params,
)

MAX_CANDIDATES = 64
"""Settings in one comparison, all grids unfolded."""
MAX_TRIALS = 64
REFERENCE_METHOD = "retrain"

Objective = Literal["retrain", "proxy"]
"""What a search minimises: the average gap to Retrain, or the gap that needs no Retrain."""
Location = tuple[str | int, ...]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CandidateSpec(_Model):
    """A method with fixed parameters, and lists of values to try for others."""

    method: str = Field(min_length=1, max_length=80, description="Id of an unlearning method.")
    params: dict[str, Any] = Field(
        default_factory=dict, description="Parameters; absent ones get the framework's defaults."
    )
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="Values to try per parameter, in every combination."
    )


class Candidate(_Model):
    """One setting to compare: a method with all of its parameters."""

    method: str
    params: dict[str, Any]
    """Every parameter, validated, defaults included."""
    label: str
    """The method and the parameters that were given, as tables show them; unique in a comparison."""


class Range(_Model):
    """Values from low to high to search, evenly or evenly in the logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range must be above 0")
        return self


@dataclass(frozen=True)
class Problem:
    """What is wrong with one entry, and where: `(0, "grid", "beta", 1)`, `(2, "params", "alpha")`."""

    location: Location
    message: str


class InvalidCandidates(ValueError):
    """Entries that cannot be compared; `problems` names each of the first wrong setting."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        texts = (f"{'.'.join(map(str, each.location))}: {each.message}" for each in problems)
        super().__init__("; ".join(texts))
        self.problems = tuple(problems)


def expand(specs: Sequence[CandidateSpec | Mapping[str, Any]], framework: str) -> list[Candidate]:
    """Every setting of the entries: fixed parameters and the product of each grid, in order.

    Raises InvalidCandidates, a ValueError, for an unknown method or one not for `framework`, the
    reference method Retrain, a parameter that is unknown, out of bounds or both fixed and in the
    grid, an empty grid list, a setting that occurs twice, no entry, or more than MAX_CANDIDATES
    settings; pydantic.ValidationError for an entry of another shape.
    """
    entries = [_entry(spec) for spec in specs]
    if not entries:
        raise InvalidCandidates([Problem((), "at least one method is needed")])
    total = sum(_combinations(index, entry) for index, entry in enumerate(entries))
    if total > MAX_CANDIDATES:
        raise InvalidCandidates(
            [Problem((), f"{total} settings, but at most {MAX_CANDIDATES} can be compared at once")]
        )
    candidates: list[Candidate] = []
    seen: dict[str, str] = {}
    for index, entry in enumerate(entries):
        for candidate in _settings(index, entry, framework):
            identity = f"{candidate.method} {sorted(candidate.params.items())}"
            if identity in seen:
                message = f"{candidate.label!r} is the same setting as {seen[identity]!r}"
                raise InvalidCandidates([Problem((index,), message)])
            seen[identity] = candidate.label
            candidates.append(candidate)
    return candidates


def make_candidate(method: str, framework: str, given: Mapping[str, Any]) -> Candidate:
    """The candidate of one setting; raises what `catalog.parse_params` raises."""
    checked = parse_params(method, framework, given)
    return Candidate(method=method, params=checked.model_dump(), label=label_of(method, given))


def label_of(method: str, given: Mapping[str, Any]) -> str:
    """`fine_tune`, or `fine_tune (epochs=3, learning_rate=0.01)`."""
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in given.items())
    return f"{method} ({shown})" if shown else method


def search_ranges(
    method: str,
    framework: str,
    ranges: Mapping[str, Range] | None = None,
    *,
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Range]:
    """The ranges to search beside `fixed` parameters: those given, or else the paper's.

    Raises InvalidCandidates where neither exists, for a fixed parameter out of bounds or in a range
    too, and for a range whose ends its parameter does not take. Locations begin with "method",
    "params" or "ranges".
    """
    _check_method(("method",), method, framework)
    given = dict(fixed or {})
    default = SEARCH_RANGES.get((method, framework), {})
    chosen = {**ranges} if ranges else {n: r for n, r in default.items() if n not in given}
    if not chosen:
        message = f"nothing to search is known for {method!r} on {framework!r}: give ranges"
        raise InvalidCandidates([Problem(("ranges",), message)])
    _check_fixed(method, framework, given)
    for name, bounds in chosen.items():
        if name in given:
            message = "given as a parameter and as a range"
            raise InvalidCandidates([Problem(("ranges", name), message)])
        for end in (bounds.low, bounds.high):
            value = round(end) if is_whole(method, name) else end
            try:
                parse_params(method, framework, {**given, name: value})
            except ValidationError as error:
                message = f"{end:g}: {error.errors()[0]['msg']}"
                raise InvalidCandidates([Problem(("ranges", name), message)]) from error
    return chosen


def is_whole(method: str, name: str) -> bool:
    """Whether the parameter of this name takes whole numbers only."""
    field = METHODS[method].params.model_fields.get(name)
    return field is not None and field.annotation is int


def _entry(spec: CandidateSpec | Mapping[str, Any]) -> CandidateSpec:
    return spec if isinstance(spec, CandidateSpec) else CandidateSpec.model_validate(spec)


def _combinations(index: int, entry: CandidateSpec) -> int:
    total = 1
    for name, values in entry.grid.items():
        if not values:
            message = "a grid needs at least one value"
            raise InvalidCandidates([Problem((index, "grid", name), message)])
        if name in entry.params:
            message = "given as a parameter and in the grid"
            raise InvalidCandidates([Problem((index, "grid", name), message)])
        total *= len(values)
    return total


def _settings(index: int, entry: CandidateSpec, framework: str) -> Iterator[Candidate]:
    _check_method((index, "method"), entry.method, framework)
    for positions in product(*(range(len(values)) for values in entry.grid.values())):
        chosen = dict(zip(entry.grid, positions, strict=True))
        given = entry.params | {name: entry.grid[name][at] for name, at in chosen.items()}
        try:
            yield make_candidate(entry.method, framework, given)
        except ValidationError as error:
            raise InvalidCandidates(_problems((index,), chosen, error)) from error


def _check_method(location: Location, method: str, framework: str) -> None:
    if method == REFERENCE_METHOD:
        message = f"{method!r} is what methods are compared with, not one of them"
        raise InvalidCandidates([Problem(location, message)])
    try:
        if method not in METHODS:
            raise UnknownMethod(method)
        if framework not in METHODS[method].frameworks:
            raise MethodNotForFramework(method, framework)
    except ValueError as error:
        raise InvalidCandidates([Problem(location, str(error))]) from error


def _check_fixed(method: str, framework: str, given: Mapping[str, Any]) -> None:
    try:
        parse_params(method, framework, given)
    except ValidationError as error:
        raise InvalidCandidates(_problems((), {}, error)) from error


def _problems(
    entry: Location, positions: Mapping[str, int], error: ValidationError
) -> list[Problem]:
    """`positions`: of the values that come from the entry's grid."""
    problems = []
    for found in error.errors():
        names = [str(part) for part in found["loc"][:1]]
        where: Location = (*entry, "params", *names)
        if names and names[0] in positions:
            where = (*entry, "grid", names[0], positions[names[0]])
        problems.append(Problem(where, found["msg"]))
    return problems


def _shown(value: object) -> str:
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def _rates(low: float, high: float) -> dict[str, Range]:
    return {"learning_rate": Range(low=low, high=high, log=True)}


_IMAGES = ("simclr", "moco", "byol", "supervised")
_PUBLISHED: Mapping[str, tuple[dict[str, Range], dict[str, Range]]] = {
    "fine_tune": (_rates(0.003, 0.03), _rates(5e-5, 5e-4)),
    "gradient_ascent": (_rates(1e-6, 1e-4), _rates(5e-6, 5e-4)),
    "neg_grad": (_rates(0.003, 0.03), _rates(1e-5, 1e-4)),
    "l1_sparsity": (
        {"l1_weight": Range(low=1e-6, high=1e-3, log=True)},
        {"l1_weight": Range(low=1e-9, high=1e-4, log=True)},
    ),
    "alignment_calibration": (
        {"beta": Range(low=0, high=20), **_rates(0.003, 0.03)},
        {name: Range(low=0.5, high=1) for name in ("alpha", "gamma")}
        | {"beta": Range(low=0, high=1)},
    ),
}
"""Per method for image encoders and for CLIP, as searched in arXiv 2406.03603. Where that paper
names single rates only (0.006 and 0.02), those of its other methods; it ties alpha to gamma."""

SEARCH_RANGES: Mapping[tuple[str, str], Mapping[str, Range]] = MappingProxyType(
    {
        (method, framework): clip if framework == "clip" else image
        for method, (image, clip) in _PUBLISHED.items()
        for framework in (*_IMAGES, "clip")
        if method in METHODS and framework in METHODS[method].frameworks
    }
)
"""What `search` tries where no ranges are given, by method and framework."""
