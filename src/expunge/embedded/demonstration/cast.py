"""The parties of the demo, each acting with its own key only, and how they come to their data sets."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from expunge.client import Client
from expunge.client.resources import Dataset, Key, Party, Role
from expunge.embedded.stack import OperatorKey


class DemoError(RuntimeError):
    """A step of the demo went wrong; the message says which and why."""


@dataclass(frozen=True)
class Actor:
    """A party and its own connection."""

    party: Party
    key: Key
    client: Client

    @property
    def name(self) -> str:
        """As shown to people."""
        return self.party.name

    @property
    def slug(self) -> str:
        """As used in file names."""
        return self.name.lower().replace(" ", "-")


@dataclass(frozen=True)
class Cast:
    """Who takes part."""

    model_owner: Actor
    owners: tuple[Actor, Actor]


ROLES: tuple[tuple[str, Role], ...] = (
    ("Model owner", "model_owner"),
    ("Ada", "data_owner"),
    ("Ben", "data_owner"),
)


@contextmanager
def gathered(url: str, operator: OperatorKey) -> Iterator[Cast]:
    """The operator creates the parties and hands out their keys."""
    with ExitStack() as connections:
        connect = connections.enter_context
        office = connect(Client(url, operator.secret))
        actors = []
        for name, role in ROLES:
            party = office.create_party(name, role)
            key = office.create_key(party.id)
            actors.append(Actor(party, key, connect(Client(url, key.secret))))
        yield Cast(actors[0], (actors[1], actors[2]))


def sealed(actor: Actor, name: str, shards: Sequence[Path]) -> Dataset:
    """A sealed data set of these shards.

    Raises:
        DemoError: the service found it invalid.
    """
    dataset = actor.client.create_dataset(name)
    for shard in shards:
        actor.client.upload_shard(dataset.id, shard)
    dataset = actor.client.seal(dataset.id)
    if dataset.state != "sealed":
        raise DemoError(f"{actor.name}'s data set {name!r} is {dataset.state}: {dataset.problem}")
    return dataset
