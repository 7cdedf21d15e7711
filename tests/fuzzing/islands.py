"""Two islands of parties that share nothing with each other, with real resources full of marks.

A mark is text that nobody can guess; it stands in names, keys of samples and captions. Sends nothing hostile.
"""

import io
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
from PIL import Image
from tests.api.conftest import CALL_SECONDS, Past, User, shard_of
from tests.api.removed import removed

from expunge.formats.shards import Sample, make_sample
from expunge.registry import parties
from expunge.registry.tables import Role

MARK = re.compile(r"mk[0-9a-f]{24}")
IMAGE_SIZE = 16
FORGOTTEN, KEPT = 4, 24
"""Samples of a data owner, and of the model owner."""
OPERATOR, ANONYMOUS = "operator", "anonymous"


@dataclass
class Resident(User):
    """A party with a name in the story, on an island or on none; `key` is its bearer secret."""

    name: str = ""
    role: Role | None = None
    island: int | None = None
    key: str = ""
    label: str = ""
    """What it calls the next model that it makes."""

    def model(self, **members: Any) -> str:
        """A new model named by `label`."""
        return super().model(**({"name": self.label} | members))


@dataclass
class Marks:
    """Texts that nobody can guess, each with the residents that may read it."""

    rng: random.Random
    readers: dict[str, frozenset[str]] = field(default_factory=dict)

    def new(self, *readers: str) -> str:
        """A new mark for these residents' eyes."""
        mark = f"mk{self.rng.randbytes(12).hex()}"
        self.readers[mark] = frozenset(readers)
        return mark

    def foreign(self, text: str, reader: str) -> set[str]:
        """The marks in a text that are not for this reader."""
        found = set(MARK.findall(text))
        return {mark for mark in found if reader not in self.readers.get(mark, frozenset())}


@dataclass
class Contents:
    """The marks of a data set: in its name, and in its samples."""

    name: str
    samples: set[str] = field(default_factory=set)


@dataclass
class World:
    """Everybody, by name, and the marks of their things."""

    past: Past
    url: str
    marks: Marks
    seal: Callable[[], None]
    residents: dict[str, Resident] = field(default_factory=dict)
    contents: dict[str, Contents] = field(default_factory=dict)
    """By the data set's id."""

    @classmethod
    def build(cls, past: Past, url: str, seed: int, seal: Callable[[], None]) -> "World":
        """Both islands, an operator, and somebody without a key.

        Needs a worker that seals data sets, audits and encodes; `seal` seals the log.
        """
        rng = random.Random(seed)  # noqa: S311 - to be repeated
        world = cls(past, url, Marks(rng), seal)
        world._settle(OPERATOR, Role.OPERATOR, None)
        world.residents[ANONYMOUS] = Resident("", world._http(""), past.folder, name=ANONYMOUS)
        for island in (1, 2):
            world._populate(island)
        return world

    def share(self, dataset: str, party: str, *, samples: bool) -> None:
        """Note that a party was shown a data set: its name, and its samples if it was delegated."""
        contents = self.contents.get(dataset)
        names = {each.name for each in self.residents.values() if each.id == party}
        if contents is not None:
            for mark in {contents.name} | (contents.samples if samples else set()):
                self.marks.readers[mark] |= names

    def renew(self, name: str) -> str:
        """Give a resident whose key was revoked another one; its id."""
        resident = self.residents[name]
        with self.past.sessions.begin() as session:
            issued = parties.issue_key(session, resident.id, expires_in_days=1, actor="fuzz")
            resident.key, key_id = issued.secret, issued.key.id
        return key_id

    def close(self) -> None:
        """End all connections."""
        for resident in self.residents.values():
            resident.http.close()

    def _http(self, key: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=CALL_SECONDS, trust_env=False
        )

    def _settle(self, name: str, role: Role, island: int | None) -> Resident:
        with self.past.sessions.begin() as session:
            called = self.marks.new(name, OPERATOR)
            party = parties.create_party(session, called, role, actor="fuzz")
            issued = parties.issue_key(session, party.id, expires_in_days=1, actor="fuzz")
        http = self._http(issued.secret)
        found = Resident(
            party.id, http, self.past.folder, name=name, role=role, island=island, key=issued.secret
        )
        self.residents[name] = found
        return found

    def _populate(self, island: int) -> None:
        owner = self._settle(f"owner-{island}", Role.DATA_OWNER, island)
        neighbour = self._settle(f"neighbour-{island}", Role.DATA_OWNER, island)
        model_owner = self._settle(f"model-owner-{island}", Role.MODEL_OWNER, island)
        auditor = self._settle(f"auditor-{island}", Role.AUDITOR, island)
        shown = (owner.name, model_owner.name, auditor.name)
        forgotten, second = (self._sealed(owner, shown, FORGOTTEN) for _ in range(2))
        beside = self._sealed(neighbour, (neighbour.name, model_owner.name), FORGOTTEN)
        kept, control = (self._sealed(model_owner, (model_owner.name,), KEPT) for _ in range(2))
        model_owner.label = self.marks.new(
            model_owner.name, owner.name, neighbour.name, auditor.name
        )
        removal = removed(
            self.past,
            model_owner,
            owner,
            forgotten,
            {kept: model_owner, second: owner, beside: neighbour},
        )
        self._go_on(owner, auditor, forgotten, removal.request)
        answered(
            model_owner.http.put(f"/models/{removal.model}/control", json={"dataset_id": control})
        )
        self._compare(model_owner, removal.model, second)
        policy = model_owner.http.patch(
            f"/models/{removal.model}/policy", json={"approval": "manual"}
        )
        answered(policy)
        for asker, dataset in ((owner, second), (neighbour, beside)):
            answered(asker.post("/requests", {"model_id": removal.model, "dataset_ids": [dataset]}))
        model_owner.label = self.marks.new(model_owner.name)
        fresh = model_owner.model()
        answered(model_owner.post(f"/models/{fresh}/pretrain", {"dataset_ids": [kept]}))
        self._filled(owner, (owner.name,), 1)

    def _go_on(self, owner: Resident, auditor: Resident, dataset: str, request: str) -> None:
        """What the owner and the auditor do once the request is completed."""
        until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        body = {"auditor_id": auditor.id, "dataset_ids": [dataset], "expires_at": until}
        answered(owner.post("/delegations", body))
        for asker, path in ((owner, "/audit"), (auditor, "/audit"), (owner, "/encode")):
            found = asker.post(
                path, {"request_id": request, "views": 2}, headers={"Prefer": "wait=60"}
            )
            assert answered(found)["state"] == "succeeded", found.text
        self.seal()
        answered(owner.get(f"/requests/{request}/certificate"))

    def _compare(self, model_owner: Resident, model: str, dataset: str) -> None:
        """One comparison that is finished, and one that waits."""
        body = {"model_id": model, "dataset_ids": [dataset], "methods": [{"method": "fine_tune"}]}
        for _ in range(2):
            found = answered(model_owner.post("/comparisons", body | {"with_retrain": False}))
        assert found["state"] == "queued"

    def _sealed(self, owner: Resident, shown: Iterable[str], count: int) -> str:
        made = self._filled(owner, shown, count)
        sealed = owner.post(f"/datasets/{made}/seal", headers={"Prefer": "wait=60"})
        assert answered(sealed)["state"] == "sealed", sealed.text
        return made

    def _filled(self, owner: Resident, shown: Iterable[str], count: int) -> str:
        """A data set with samples that its owner and auditors may read, and a name for all who are shown it."""
        contents = Contents(self.marks.new(*shown))
        made = str(answered(owner.post("/datasets", {"name": contents.name}))["id"])
        readers = [each for each in shown if each == owner.name or each.startswith("auditor")]
        samples = [self._sample(readers, contents.samples) for _ in range(count)]
        assert owner.put_shard(made, shard_of(owner.folder, samples)).is_success
        self.contents[made] = contents
        return made

    def _sample(self, readers: Iterable[str], marks: set[str]) -> Sample:
        named, told = (self.marks.new(*readers) for _ in range(2))
        marks |= {named, told}
        out = io.BytesIO()
        pixels = np.frombuffer(self.marks.rng.randbytes(IMAGE_SIZE**2 * 3), dtype=np.uint8)
        Image.fromarray(pixels.reshape(IMAGE_SIZE, IMAGE_SIZE, 3)).save(out, "PNG")
        return make_sample(named, "png", out.getvalue(), label=1, caption=f"a picture of {told}")


def answered(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of a call that must succeed."""
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found
