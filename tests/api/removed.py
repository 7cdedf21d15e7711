"""A completed removal with real encoders, and a worker that audits it; nothing is trained."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from tests.api.conftest import ENCODER, Past, User

from expunge.formats.digests import sha256_file
from expunge.registry import checkpoints
from expunge.registry.database import sessions
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.registry.tables import JobKind
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.checkpoints import save
from expunge.unlearning.frameworks import build
from expunge.worker.context import Context
from expunge.worker.running import Runner

QUICK = (JobKind.SEAL, JobKind.AUDIT, JobKind.ENCODE)


@contextmanager
def quick_worker(settings: Settings, engine: Engine) -> Iterator[None]:
    """A worker of all that does not train, while the block runs."""
    context = Context(settings, sessions(engine), open_store(settings))
    runner = Runner(context, QUICK)
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.03):
            runner.work_off()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        context.close()


def weights(past: Past, seed: int) -> checkpoints.StoredWeights:
    """An encoder as it is before any training, stored as a worker would."""
    path = past.folder / f"{seed}.safetensors"
    save(build(EncoderSpec.model_validate(ENCODER), seed=seed), path)
    digest = sha256_file(path)
    key, name = past.store.put(path, digest), f"sha256:{digest}"
    return checkpoints.StoredWeights(name, key, 1, name, key)


@dataclass
class Removal:
    """What a model was trained on, and what one owner had it forget."""

    model: str
    request: str


def removed(
    past: Past, model_owner: User, owner: User, forgotten: str, kept: dict[str, User]
) -> Removal:
    """Train a model on the owner's data set and on kept ones (by owner), and forget the first again."""
    for dataset, user in (kept | {forgotten: owner}).items():
        user.post(f"/datasets/{dataset}/grants", {"party_id": model_owner.id})
    model = model_owner.model()
    trained = {"dataset_ids": [*kept, forgotten]}
    lease = past.claimed(model_owner.post(f"/models/{model}/pretrain", trained).json()["id"])
    with past.sessions.begin() as session:
        checkpoints.record_pretrained(session, lease, weights(past, 0), {"seconds": 1.0})
    asked = owner.post("/requests", {"model_id": model, "dataset_ids": [forgotten]})
    request = str(asked.json()["id"])
    lease = past.claimed(past.job_of(request))
    with past.sessions.begin() as session:
        checkpoints.record_unlearned(session, lease, weights(past, 1), {"seconds": 1.0})
    return Removal(model, request)
