"""What a worker keeps in memory between jobs: bounded in bytes or in number, the longest unused goes first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from expunge.worker import metering

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Warm(Generic[Key, Value]):
    """The last values by key, as long as their weights together stay within the limit."""

    def __init__(self, name: str, limit: int, weigh: Callable[[Value], int] = lambda _: 1) -> None:
        """`weigh` gives a value's bytes; without it the limit is a number of values. `name` is for metrics."""
        self._name = name
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._weight = 0

    def get(self, key: Key) -> Value | None:
        """The value of the key, if it is there."""
        there = key in self._values
        metering.WARM.labels(self._name, "hit" if there else "miss").inc()
        if not there:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def keep(self, key: Key, value: Value) -> None:
        """Put in a value if its key is not there; one that is too heavy alone is not kept."""
        weight = self._weigh(value)
        if weight > self._limit or key in self._values:
            return
        self._values[key] = (value, weight)
        self._weight += weight
        while self._weight > self._limit:
            _, (_, gone) = self._values.popitem(last=False)
            self._weight -= gone

    def get_or_load(self, key: Key, load: Callable[[], Value]) -> Value:
        """The value of the key, loaded and kept if it is not there."""
        value = self.get(key)
        if value is None:
            value = load()
            self.keep(key, value)
        return value
