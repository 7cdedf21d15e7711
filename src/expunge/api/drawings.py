"""Files of an audit, drawn when they are asked for and kept for a while. One at a time: drawing takes a core."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from expunge.registry.objects import ObjectStore, read_bytes

if TYPE_CHECKING:
    from expunge.evidence.pictures.bundle import Bundle

KEPT_BYTES = 32 * 2**20

Name = tuple[str, ...]
"""An audit's id and what tells its files apart."""


class Drawings:
    """The last files that were drawn; threads may share it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._kept: OrderedDict[Name, bytes] = OrderedDict()
        self._guard = threading.Lock()
        self._pencil = threading.Lock()

    def get(self, name: Name, bundle_key: str, draw: "Callable[[Bundle], bytes]") -> bytes:
        """The file of this name, drawn from the bundle if it is not there.

        Raises:
            ObjectMissing, StoreUnavailable: see the store.
        """
        # Imported here: the api answers its first call before it needs NumPy.
        from expunge.evidence.pictures.bundle import unpack  # noqa: PLC0415

        if (kept := self._find(name)) is not None:
            return kept
        bundle = unpack(read_bytes(self._store, bundle_key))
        with self._pencil:
            # Somebody else may have drawn it meanwhile.
            if (kept := self._find(name)) is not None:
                return kept
            data = draw(bundle)
        self._keep(name, data)
        return data

    def _find(self, name: Name) -> bytes | None:
        with self._guard:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def _keep(self, name: Name, data: bytes) -> None:
        with self._guard:
            self._kept[name] = data
            while sum(map(len, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
