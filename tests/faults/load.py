"""Work for a service under fault: pre-training, removals in batches, audits, and all the while data sets.

Only asks, over HTTP, and asks again when told that something failed; judges nothing.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.rig import Rig
from tests.faults.users import EPOCHS_PER_SECOND, Cast, Refused, User

FINAL = ("completed", "succeeded", "failed", "cancelled", "rejected", "sealed", "open", "invalid")
POLL_SECONDS = 0.3
ASKED_AGAIN = 8
"""How often an owner whose request failed asks again."""
BATCH_WINDOW_SECONDS = 1.0
SEAL_EVERY_SECONDS = 2.0
SEALED_SAMPLES = 4
WITHDRAWN_SHARE, CANCELLED_SHARE = 0.2, 0.15
CONFLICT = 409


class Load:
    """Rounds in several lanes at once, each on models of its own, and a data set now and then.

    Use as a context manager.

    Raises, at the end: what a lane ran into, such as a call that was refused for no reason.
    """

    def __init__(
        self, rig: Rig, cast: Cast, weights: Path, *, lanes: int, seconds: float, seed: int
    ) -> None:
        """`seconds`: how long a training job takes, roughly, on a core of its own."""
        self.done: Counter[str] = Counter()
        """What was asked for and has ended, by kind and state."""
        self._rig, self._cast, self._weights = rig, cast, weights
        self._epochs = max(1, round(EPOCHS_PER_SECOND * seconds))
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._errors: list[Exception] = []
        draws = [random.Random(seed + lane) for lane in range(lanes)]  # noqa: S311 - repeatable
        rounds = [partial(self._round, draw) for draw in draws]
        self._lanes = [
            threading.Thread(target=self._run, args=(each,)) for each in (*rounds, self._seal_one)
        ]

    def __enter__(self) -> Self:
        for lane in self._lanes:
            lane.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for lane in self._lanes:
            lane.join()
        if self._errors and error is None:
            raise self._errors[0]

    def check(self) -> None:
        """Raise what a lane ran into."""
        if self._errors:
            raise self._errors[0]

    def _run(self, rounds: Callable[[], None]) -> None:
        """Rounds until told to stop; one that has begun is brought to its end."""
        try:
            while not self._stopping.is_set():
                rounds()
        except Exception as error:
            self._errors.append(error)

    def _round(self, draw: random.Random) -> None:
        cast = self._cast
        model_id = self._model(draw)
        first = {owner: cast.sets[owner.party_id][0] for owner in cast.owners}
        asked = {
            owner: self._ask(owner, model_id, dataset_id) for owner, dataset_id in first.items()
        }
        self._change_minds(draw, asked)
        for owner, request_id in asked.items():
            self._audit(owner, self._until_completed(owner, model_id, first[owner], request_id))

    def _seal_one(self) -> None:
        """A little work for the interactive worker."""
        owner = self._cast.model_owner
        dataset_id = self._cast.dataset(owner, "more", SEALED_SAMPLES)
        self._count(f"data set {self._ended(owner, f'/datasets/{dataset_id}')}")
        self._stopping.wait(SEAL_EVERY_SECONDS)

    def _change_minds(self, draw: random.Random, asked: dict[User, str]) -> None:
        """Now and then an owner withdraws, or the model's owner cancels the job; either may come too late."""
        owner, request_id = draw.choice(list(asked.items()))
        if draw.random() < WITHDRAWN_SHARE:
            self._try(owner, f"/requests/{request_id}/cancel", "withdrawal")
        elif draw.random() < CANCELLED_SHARE:
            (row,) = self._rig.rows("SELECT job_id FROM requests WHERE id = :id", id=request_id)
            if row["job_id"] is not None:
                self._try(self._cast.model_owner, f"/jobs/{row['job_id']}/cancel", "cancel")

    def _try(self, user: User, path: str, what: str) -> None:
        try:
            user.call("POST", path)
            self._count(f"{what} accepted")
        except Refused as refusal:
            if refusal.status != CONFLICT:
                raise
            self._count(f"{what} too late")

    def _count(self, what: str) -> None:
        with self._guard:
            self.done[what] += 1

    def _model(self, draw: random.Random) -> str:
        """Ready to forget: uploaded, or pre-trained by a job, which is asked for again if it fails."""
        if draw.random() < 0.5:
            return self._cast.model(
                weights=self._weights, batch_window_seconds=BATCH_WINDOW_SECONDS
            )
        model_id = self._cast.model(batch_window_seconds=BATCH_WINDOW_SECONDS)
        for _ in range(ASKED_AGAIN):
            job_id = self._cast.pretrain(model_id, self._epochs)
            state = self._ended(self._cast.model_owner, f"/jobs/{job_id}")
            self._count(f"pre-training {state}")
            if state == "succeeded":
                return model_id
        raise AssertionError(f"pre-training of {model_id} failed {ASKED_AGAIN} times")

    def _ask(self, owner: User, model_id: str, dataset_id: str) -> str:
        return self._cast.ask(owner, model_id, [dataset_id], epochs=self._epochs)

    def _until_completed(self, owner: User, model_id: str, dataset_id: str, request_id: str) -> str:
        for _ in range(ASKED_AGAIN):
            state = self._ended(owner, f"/requests/{request_id}")
            self._count(f"request {state}")
            if state == "completed":
                return request_id
            request_id = self._ask(owner, model_id, dataset_id)
        raise AssertionError(f"{request_id} failed, as did {ASKED_AGAIN - 1} before it")

    def _audit(self, owner: User, request_id: str) -> None:
        for _ in range(ASKED_AGAIN):
            body = {"request_id": request_id, "matrix_size": 4, "views": 2}
            audit = owner.create("/audit", body)
            state = self._ended(owner, f"/audits/{audit['id']}")
            self._count(f"audit {state}")
            if state == "succeeded":
                return
        raise AssertionError(f"audits of {request_id} failed {ASKED_AGAIN} times")

    def _ended(self, user: User, path: str) -> str:
        while True:
            state = str(user.get(path)["state"])
            if state in FINAL:
                return state
            time.sleep(POLL_SECONDS)
