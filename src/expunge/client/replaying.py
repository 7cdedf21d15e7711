"""Repeats a recorded audit at home, from outputs that the service signs for anew, and says what differs.

Compares what own samples alone decide. The test, the verdict and the control need images of others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from expunge.client.local_audit import outputs_at_home
from expunge.client.problems import DoubtError
from expunge.client.reports import Audit
from expunge.evidence.audit import audit
from expunge.evidence.encoding import SIDES, TOLERANCE
from expunge.evidence.signing import PublicKey
from expunge.evidence.subset import subset_digest

if TYPE_CHECKING:
    from expunge.client.sdk import Client

OWN = ("forgetting_score", "negative_alignment")
"""What of a level own samples alone decide."""
SETTLED = ("n_own", "views", "seed", "confidence")


@dataclass(frozen=True)
class Differing:
    """One thing that is otherwise now than it was recorded; `place` is its path in the report."""

    place: str
    recorded: Any
    found: Any


@dataclass(frozen=True)
class Replay:
    """A recorded audit beside its repetition.

    compared: how many digests and numbers; largest_difference: of a number that counts as equal;
    signed_by: id of the key that signed the outputs' receipt, None where nobody's was asked for.
    """

    audit_id: str
    encoding_id: str
    differing: list[Differing]
    compared: int
    largest_difference: float
    signed_by: str | None


def replay(
    client: "Client", recorded: Mapping[str, Any], *, keys: Sequence[PublicKey] = ()
) -> Replay:
    """See `Client.replay_audit`."""
    told = _read(recorded)
    asked: dict[str, Any] = {
        "dataset_ids": told.dataset_ids,
        "sample_keys": told.sample_keys,
        "draw": told.draw,
        "views": told.views,
        "seed": told.seed,
    }
    home = outputs_at_home(client, told.request_id, asked, keys)
    encoded, report = home.encoded, recorded["report"]
    repeated = audit(encoded.levels, encoded.keys, seed=told.seed, matrix_size=told.matrix_size)
    found = repeated.to_dict()
    protocol = {side: home.statement[side]["digest"] for side in SIDES} | {
        "subset": {"samples": len(encoded.keys), "digest": subset_digest(encoded.digests)},
        "views": encoded.views,
        "seed": encoded.seed,
    }
    before = dict(_flat(_own(report) | {"protocol": _like(protocol, report["protocol"])}))
    now = dict(_flat(_own(found) | {"protocol": protocol}))
    places = sorted(before.keys() | now.keys())
    differing = [
        Differing(place, before.get(place), now.get(place))
        for place in places
        if not _alike(before.get(place), now.get(place))
    ]
    apart = {each.place for each in differing}
    gaps = [
        abs(before[place] - now[place])
        for place in places
        if place not in apart and isinstance(now[place], float)
    ]
    return Replay(
        told.id, home.encoding.id, differing, len(places), max(gaps, default=0.0), home.signed_by
    )


def _read(recorded: Mapping[str, Any]) -> Audit:
    try:
        told = Audit.model_validate(recorded)
    except ValidationError as error:
        place = "/".join(str(part) for part in error.errors()[0]["loc"])
        raise DoubtError(f"this is no audit as the service tells of it: {place}") from error
    if told.report is None or told.report.protocol is None:
        raise DoubtError(f"audit {told.id} has no report of how it was made")
    return told


def _own(report: Mapping[str, Any]) -> dict[str, Any]:
    levels = {
        level: {name: found.get(name) for name in OWN} for level, found in report["levels"].items()
    }
    return {name: report.get(name) for name in SETTLED} | {"levels": levels}


def _like(pattern: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """What `given` says of the members that the pattern has."""
    held = given if isinstance(given, Mapping) else {}
    return {
        name: _like(value, held.get(name)) if isinstance(value, Mapping) else held.get(name)
        for name, value in pattern.items()
    }


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every digest and number of a document by its path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{place}/{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{place}/{number}")
    elif value is not None:
        yield place, value


def _alike(recorded: Any, found: Any) -> bool:
    """Equal; a number that was computed may differ as far as two machines' arithmetic does."""
    if isinstance(found, float) and isinstance(recorded, int | float):
        return abs(recorded - found) <= TOLERANCE
    return bool(recorded == found)
