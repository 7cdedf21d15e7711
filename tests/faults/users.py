"""People at the HTTP API who repeat a call, with the same key, until they are answered; and what they own."""

import time
import uuid
from collections import Counter
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from tests.faults.rig import Rig
from tests.worker.lab import ENCODER, images

from expunge.client.transport import content_digest
from expunge.formats.shards import write_shard

TIMEOUT_SECONDS = 15.0
PAUSE_SECONDS = 0.2
PATIENCE_SECONDS = 90.0
COMING_BACK = (502, 503, 504)
"""Answers that ask to call again."""
OWN_SAMPLES, OWNER_SAMPLES, CONTROL_SAMPLES = 40, 12, 12
METHOD = "alignment_calibration"
EPOCHS_PER_SECOND = 25
"""Of Alignment Calibration on these data sets on one core that nobody else uses, roughly."""

Json = dict[str, Any]


class Refused(Exception):
    """The service said no, for good."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


class User:
    """One party; notes in `accepted` what it was told exists."""

    def __init__(
        self, url: str, party_id: str, secret: str, accepted: MutableMapping[tuple[str, str], str]
    ) -> None:
        self.party_id = party_id
        self._secret = secret
        self.statuses: list[int] = []
        """Of all answers, repeated calls included."""
        self._accepted = accepted
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )

    def at(self, url: str) -> "User":
        """The same party, reaching the service by another way; to be closed."""
        return User(url, self.party_id, self._secret, self._accepted)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create(self, path: str, body: Json, key: str | None = None) -> Json:
        """POST until answered; what is answered counts as accepted."""
        key = key or str(uuid.uuid4())
        made = self.call("POST", path, json=body, headers={"Idempotency-Key": key})
        self._accepted[self.party_id, key] = made["id"]
        return made

    def get(self, path: str) -> Json:
        """What is there."""
        return self.call("GET", path)

    def upload(self, method: str, path: str, file: Path, **headers: str) -> Json:
        """Send a file's bytes."""
        return self.call(
            method,
            path,
            content=file.read_bytes(),
            headers={"Content-Digest": content_digest(file)} | headers,
        )

    def call(self, method: str, path: str, **sent: Any) -> Json:
        """Call until there is an answer that is none of those that ask to call again.

        Raises:
            Refused: the answer is no.
            AssertionError: there is no answer for PATIENCE_SECONDS.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **sent)
            except httpx.TransportError as error:
                words = repr(error)
            else:
                self.statuses.append(answer.status_code)
                if answer.is_success:
                    return dict(answer.json()) if answer.content else {}
                words = f"{answer.status_code} {answer.text}"
                if answer.status_code not in COMING_BACK:
                    raise Refused(f"{method} {path}: {words}", answer.status_code)
            assert time.monotonic() < deadline, f"{method} {path}: no answer ({words})"
            time.sleep(PAUSE_SECONDS)


@dataclass(frozen=True)
class Removal:
    """A request that is under way."""

    owner: User
    model_id: str
    request_id: str
    job_id: str


class Cast:
    """A model owner with own data and control images, and data owners who granted theirs."""

    def __init__(self, rig: Rig, folder: Path, *, owners: int = 2, sets: int = 1) -> None:
        """Makes the parties and their data sets, sealed."""
        self._rig = rig
        self._folder = folder
        self._users: list[User] = []
        folder.mkdir(parents=True, exist_ok=True)
        operator = rig.stack.operator
        self.operator = self._user(operator.party_id, operator.secret)
        self.model_owner = self.party("model owner", "model_owner")
        self.owners = [self.party(f"owner {n}", "data_owner") for n in range(owners)]
        self.own = self.dataset(self.model_owner, "own", OWN_SAMPLES)
        self.control = self.dataset(self.model_owner, "control", CONTROL_SAMPLES)
        self.sets = {
            owner.party_id: [self.dataset(owner, f"set {n}", OWNER_SAMPLES) for n in range(sets)]
            for owner in self.owners
        }
        for owner in self.owners:
            for dataset_id in self.sets[owner.party_id]:
                path = f"/datasets/{dataset_id}/grants"
                owner.call("POST", path, json={"party_id": self.model_owner.party_id})
        for user in (self.model_owner, *self.owners):
            self.until_sealed(user)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for user in self._users:
            user.close()

    def _user(self, party_id: str, secret: str) -> User:
        user = User(self._rig.stack.url, party_id, secret, self._rig.accepted)
        self._users.append(user)
        return user

    @property
    def statuses(self) -> Counter[int]:
        """Of all answers that anybody got, repeated calls included."""
        return Counter(status for user in self._users for status in user.statuses)

    @property
    def training_data(self) -> list[str]:
        """All that a model is trained on."""
        return [self.own, *(each for owner in self.owners for each in self.sets[owner.party_id])]

    def party(self, name: str, role: str) -> User:
        """A new user."""
        name = f"{name} {uuid.uuid4().hex[:8]}"
        party = self.operator.create("/parties", {"name": name, "role": role})
        made = self.operator.create(f"/parties/{party['id']}/keys", {})
        return self._user(party["id"], made["secret"])

    def dataset(self, owner: User, name: str, samples: int) -> str:
        """A data set of noise that is being sealed; no two have an image in common."""
        dataset_id = str(owner.create("/datasets", {"name": f"{name} {uuid.uuid4()}"})["id"])
        file = self._folder / f"{dataset_id}.tar"
        seed = int(dataset_id[-12:], 16)
        write_shard(file, images(name.replace(" ", "-"), samples, seed))
        owner.upload("PUT", f"/datasets/{dataset_id}/shards/train-0.tar", file)
        owner.call("POST", f"/datasets/{dataset_id}/seal", json={})
        return dataset_id

    def until_sealed(self, owner: User) -> None:
        """Wait until none of the owner's data sets is being sealed."""

        def done() -> bool:
            return all(each["state"] != "sealing" for each in owner.get("/datasets")["items"])

        self._rig.eventually(done, "data sets are sealed")

    def removal(self, weights: Path, seconds: float, owner: int = 0, **policy: Any) -> "Removal":
        """A request to a model of its own, and the job that carries it out in about so many seconds."""
        return self.removal_of(self.model(weights=weights, **policy), seconds, owner)

    def removal_of(self, model_id: str, seconds: float, owner: int = 0) -> "Removal":
        """As `removal`, of a model that is there."""
        asked = self.owners[owner]
        epochs = max(1, round(seconds * EPOCHS_PER_SECOND))
        request_id = self.ask(asked, model_id, self.sets[asked.party_id], epochs=epochs)
        (row,) = self._rig.rows("SELECT job_id FROM requests WHERE id = :id", id=request_id)
        return Removal(asked, model_id, request_id, str(row["job_id"]))

    def model(self, *, weights: Path | None = None, more: Sequence[str] = (), **policy: Any) -> str:
        """A model; with `weights`, said to be trained on the training data and `more`, it is ready to forget."""
        body = {
            "name": f"model {uuid.uuid4()}",
            "encoder": ENCODER.model_dump(mode="json"),
            "control_dataset_id": self.control,
            "policy": policy,
        }
        model_id = str(self.model_owner.create("/models", body)["id"])
        if weights is not None:
            sets = "&".join(f"dataset_ids={each}" for each in (*self.training_data, *more))
            self.model_owner.upload("POST", f"/models/{model_id}/checkpoints?{sets}", weights)
            self._rig.eventually(lambda: self.head(model_id), "the upload becomes the head")
        return model_id

    def head(self, model_id: str) -> str | None:
        """The checkpoint in force."""
        return self.model_owner.get(f"/models/{model_id}")["head_checkpoint_id"]

    def pretrain(self, model_id: str, epochs: int) -> str:
        """Id of a job that trains fresh weights."""
        body = {
            "dataset_ids": self.training_data,
            "params": {"epochs": epochs, "batch_size": 16},
            "seed": 3,
        }
        return str(self.model_owner.create(f"/models/{model_id}/pretrain", body)["id"])

    def ask(
        self,
        owner: User,
        model_id: str,
        dataset_ids: Sequence[str],
        *,
        key: str | None = None,
        **params: Any,
    ) -> str:
        """Id of a request to be forgotten."""
        body = {
            "model_id": model_id,
            "dataset_ids": list(dataset_ids),
            "method": METHOD,
            "params": {"epochs": EPOCHS_PER_SECOND, "batch_size": 16} | params,
        }
        return str(owner.create("/requests", body, key)["id"])
