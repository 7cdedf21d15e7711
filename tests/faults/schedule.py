"""Which fault comes when, drawn from a seed: plain data, printed with every failure and replayed from that."""

import json
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done to the service."""

    KILL_TRAINER = "kill a train worker"
    KILL_TRAINING = "kill a training process"
    KILL_INTERACTIVE = "kill the interactive worker"
    KILL_API = "kill the api"
    KILL_DISPATCH = "kill the dispatcher"
    KILL_REDIS = "kill Redis"
    KILL_POSTGRES = "kill PostgreSQL"
    KILL_BACKEND = "kill one backend of PostgreSQL"
    FLUSH_REDIS = "empty Redis"
    PAUSE_TRAINER = "pause a train worker past its lease"
    PAUSE_FAMILY = "pause a train worker and its training process past the lease"
    STORE_REFUSES = "object store refuses connections"
    STORE_STALLS = "object store stalls"
    STORE_CUTS = "object store breaks off in the middle of bodies"
    STORE_UNAVAILABLE = "object store answers 503"
    FILL_DISK = "fill the workers' disk"


KILLS = frozenset(kind for kind in Kind if kind.name.startswith("KILL"))
NEEDS_A_DISK = frozenset({Kind.FILL_DISK})
SECONDS = {
    Kind.PAUSE_TRAINER: (6.0, 8.0),
    Kind.PAUSE_FAMILY: (6.0, 8.0),
    Kind.STORE_REFUSES: (1.0, 4.0),
    Kind.STORE_STALLS: (1.0, 4.0),
    Kind.STORE_CUTS: (1.0, 4.0),
    Kind.STORE_UNAVAILABLE: (1.0, 4.0),
    Kind.FILL_DISK: (1.0, 4.0),
}
"""How long a fault lasts, from and to; the others are over at once. A lease lasts four."""


@dataclass(frozen=True)
class Fault:
    """One thing that is done."""

    kind: Kind
    pause: float
    """Seconds since the one before it began."""
    seconds: float
    """How long it lasts; others may come meanwhile."""
    draw: int
    """Decides which one is hit where there are several."""


def plan(
    seed: int, kinds: Collection[Kind], *, kills: int, pause: tuple[float, float]
) -> tuple[Fault, ...]:
    """A schedule with this many kills, each kind in turn, and half as often each other fault between them.

    Args:
        pause: shortest and longest, in seconds.
    """
    draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
    deadly, others = sorted(KILLS & set(kinds)), sorted(set(kinds) - KILLS)
    chosen: list[Kind] = []
    while sum(kind in KILLS for kind in chosen) < kills:
        turn = [*deadly, *draw.sample(others, (len(others) + 1) // 2)]
        chosen += draw.sample(turn, len(turn))
    last = [number for number, kind in enumerate(chosen) if kind in KILLS][kills - 1]
    return tuple(
        Fault(
            kind=kind,
            pause=round(draw.uniform(*pause), 2),
            seconds=round(draw.uniform(*SECONDS.get(kind, (0.0, 0.0))), 2),
            draw=draw.randrange(2**16),
        )
        for kind in chosen[: last + 1]
    )


def to_json(seed: int, faults: Sequence[Fault]) -> str:
    """The schedule as a text that `from_json` reads."""
    return json.dumps({"seed": seed, "faults": [asdict(fault) for fault in faults]})


def from_json(text: str) -> tuple[int, tuple[Fault, ...]]:
    """Seed and faults that `to_json` wrote."""
    read = json.loads(text)
    return read["seed"], tuple(
        Fault(**each | {"kind": Kind(each["kind"])}) for each in read["faults"]
    )


def words(faults: Sequence[Fault]) -> Iterator[str]:
    """One line a fault."""
    at = 0.0
    for fault in faults:
        at += fault.pause
        lasts = f" for {fault.seconds:g} s" if fault.seconds else ""
        yield f"{at:7.1f} s  {fault.kind}{lasts}"
