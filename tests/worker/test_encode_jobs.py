"""Encodings as the interactive worker makes them, checked by whoever has the checkpoint."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import Engine, delete
from tests.worker.lab import ENCODER, Lab, World, images

from expunge.evidence import encoding as evidence
from expunge.evidence.audit.outputs import MAX_PAIR_SAMPLES
from expunge.evidence.encoding import PAYLOAD_TYPE, Encoded
from expunge.evidence.signing import Signer, verify
from expunge.evidence.subset import subset_digest
from expunge.formats.digests import sha256_file
from expunge.formats.home_views import View, write_views
from expunge.registry import (
    audits,
    checkpoints,
    datasets,
    delegations,
    encodings,
    signing_keys,
)
from expunge.registry.objects import read_bytes
from expunge.registry.tables import Checkpoint, Encoding, Party, Role, SigningKey
from expunge.unlearning.audit import outputs
from expunge.unlearning.checkpoints import load, save
from expunge.unlearning.data.image_set import load_shards
from expunge.unlearning.frameworks import build

VIEWS, SEED = 3, 5


@dataclass
class House:
    """A completed request about two data sets whose samples have the same keys."""

    lab: Lab
    world: World
    more: str
    request: str
    key: Path

    def ask(self, party: Party | None = None, **asked: Any) -> str:
        wanted = encodings.Asked(
            **{"request_id": self.request, "views": VIEWS, "seed": SEED} | asked
        )
        with self.lab.sessions.begin() as session:
            return encodings.create(session, party or self.world.first_owner, wanted).id

    def done(self, encoding_id: str) -> Encoding:
        hands = self.lab.with_settings(signing_key_file=str(self.key))
        with self.lab.sessions() as session:
            job_id = session.get_one(Encoding, encoding_id).job_id
        hands.run(job_id)
        with self.lab.sessions() as session:
            row = session.get_one(Encoding, encoding_id)
            assert row.before.digest
            assert row.after.digest
            return row

    def encoded(self, row: Encoding) -> Encoded:
        assert row.job.state == "succeeded", row.job.reason
        assert row.receipt is not None
        data = read_bytes(self.lab.store, str(row.outputs_key))
        return evidence.check(row.receipt["statement"], data)

    def file(self, checkpoint: Checkpoint) -> Path:
        path = self.lab.folder / f"{checkpoint.id}.safetensors"
        path.write_bytes(read_bytes(self.lab.store, checkpoint.object_key))
        return path


@pytest.fixture(scope="module")
def house(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> House:
    lab = Lab(engine, tmp_path_factory.mktemp("encodings"))
    world = World(lab)
    more = lab.sealed(world.first_owner, "more", smooth("first", 6))
    with lab.sessions.begin() as session:
        datasets.grant(session, world.first_owner, more, world.model_owner.id)
    trained = [*world.training_data, more]
    lease = lab.claim(lab.pretraining(world.model_owner, world.model, trained))
    with lab.sessions.begin() as session:
        checkpoints.record_pretrained(session, lease, weights(lab, 0), {"seconds": 1.0})
    request = lab.request(world.first_owner, world.model, [world.first, more])
    lease = lab.claim(lab.job_of(request).id)
    with lab.sessions.begin() as session:
        checkpoints.record_unlearned(session, lease, weights(lab, 1), {"seconds": 1.0})
    key = lab.folder / "key.pem"
    Signer.create(key)
    return House(lab, world, more, request, key)


def weights(lab: Lab, seed: int) -> checkpoints.StoredWeights:
    """An encoder as it is before any training: what it has learnt is nothing to an encoding."""
    path = lab.folder / f"{seed}.safetensors"
    save(build(ENCODER, seed=seed), path)
    digest, key = sha256_file(path), lab.store.put(path, sha256_file(path))
    return checkpoints.StoredWeights(
        f"sha256:{digest}", key, path.stat().st_size, f"sha256:{digest}", key
    )


def smooth(prefix: str, count: int) -> list[Any]:
    """Images with structure that survives a crop, as photographs have."""
    rng = np.random.default_rng(11)
    found = []
    for sample in images(prefix, count, 1):
        out = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(out, "PNG")
        found.append(replace(sample, image=out.getvalue()))
    return found


def test_outputs_are_those_of_the_committed_weights(house: House) -> None:
    row = house.done(house.ask())
    found = house.encoded(row)
    assert found.keys[0].startswith((f"{house.world.first}/", f"{house.more}/"))
    assert len(found.keys) == 18
    path = house.lab.folder / "first-0.tar"
    learners = [load(house.file(each)) for each in (row.before, row.after)]
    own = load_shards([path], 16)
    mine = outputs(learners[0], learners[1], own, views=VIEWS, seed=SEED, device="cpu")
    names = [f"{house.world.first}/{key}" for key in own.keys]
    places = [found.keys.index(name) for name in names]
    for side in evidence.SIDES:
        wanted = {level: getattr(each, side) for level, each in mine.items()}
        assert evidence.largest_difference(found, side, wanted, places) < evidence.TOLERANCE
    other = {level: each.after for level, each in mine.items()}
    assert evidence.largest_difference(found, "before", other, places) > evidence.TOLERANCE


def test_the_receipt_names_weights_inputs_and_outputs_and_is_signed(house: House) -> None:
    row = house.done(house.ask(dataset_ids=(house.world.first,), sample_keys=("first-003",)))
    found = house.encoded(row)
    assert row.receipt is not None
    statement, envelope = row.receipt["statement"], row.receipt["envelope"]
    key = Signer.load(house.key).public_key
    assert json.loads(verify(envelope, [key], PAYLOAD_TYPE)) == statement
    for side in ("before", "after"):
        weights = getattr(row, side)
        assert statement[side] == {
            "checkpoint_id": weights.id,
            "digest": weights.digest,
            "release_digest": weights.release_digest,
        }
    assert statement["before"]["digest"] == f"sha256:{sha256_file(house.file(row.before))}"
    assert statement["inputs"] == {
        "kind": "registered-samples",
        "samples": 1,
        "digest": subset_digest(found.digests),
    }
    assert (found.keys, statement["seed"], statement["views"]) == (["first-003"], str(SEED), VIEWS)


def test_equal_questions_have_equal_answers(house: House) -> None:
    rows = [house.done(house.ask()) for _ in range(2)]
    assert rows[0].id != rows[1].id
    assert rows[0].outputs_key == rows[1].outputs_key


def test_a_service_without_a_key_says_so(house: House) -> None:
    encoding_id = house.ask()
    with house.lab.sessions.begin() as session:
        session.execute(delete(SigningKey))
    with house.lab.sessions() as session:
        house.lab.runner.run(session.get_one(Encoding, encoding_id).job_id)
    with house.lab.sessions() as session:
        receipt = session.get_one(Encoding, encoding_id).receipt
    assert receipt is not None
    assert receipt["envelope"] is None
    assert receipt["statement"]["encoding_id"] == encoding_id


def test_where_a_service_signs_no_process_without_the_key_answers(house: House) -> None:
    encoding_id = house.ask()
    with house.lab.sessions.begin() as session:
        signing_keys.admit(session, Signer.load(house.key))
    with house.lab.sessions() as session:
        house.lab.runner.run(session.get_one(Encoding, encoding_id).job_id)
    with house.lab.sessions() as session:
        row = session.get_one(Encoding, encoding_id)
        assert (row.job.state, row.receipt) == ("failed", None)
        assert "given none" in str(row.job.reason)


def test_a_delegation_withdrawn_before_it_starts_ends_it(house: House) -> None:
    lab, owner = house.lab, house.world.first_owner
    auditor = lab.party("auditor", Role.AUDITOR)
    with lab.sessions.begin() as session:
        delegation = delegations.create(
            session,
            owner,
            auditor_id=auditor.id,
            dataset_ids=[house.more],
            expires_at=datetime.now(UTC) + timedelta(days=1),
        ).id
    encoding_id = house.ask(auditor)
    with lab.sessions.begin() as session:
        asked = audits.Asked(house.request, audits.Protocol(views=2, seed=0, matrix_size=4))
        audit_job = audits.create(session, auditor, asked).job_id
    with lab.sessions.begin() as session:
        delegations.withdraw(session, owner, delegation)
    row = house.done(encoding_id)
    lab.runner.run(audit_job)
    assert row.outputs_key is None
    for job in (row.job, lab.job(audit_job)):
        assert job.state == "failed"
        assert "not delegated" in str(job.reason)


class TestOwnViews:
    """Views made at home from the registered images, with another program than the service's."""

    def views(self, house: House, samples: Sequence[Any], dataset: str) -> list[tuple[View, bytes]]:
        rng = np.random.default_rng(3)
        found = []
        for sample in samples:
            image = Image.open(io.BytesIO(sample.image))
            for number in range(VIEWS):
                side = int(rng.integers(10, 17))
                top, left = (int(rng.integers(0, 17 - side)) for _ in range(2))
                view = image.crop((left, top, left + side, top + side))
                view = view.resize((16, 16), Image.Resampling.BILINEAR)
                out = io.BytesIO()
                view.point(lambda value: int(value * 0.9)).save(out, "PNG")
                found.append(
                    (
                        View(
                            f"{sample.key}__{number}.png",
                            f"{dataset}/{sample.key}",
                            number,
                            (top, left, side, side),
                            False,
                            0,
                            0,
                        ),
                        out.getvalue(),
                    )
                )
        return found

    def sent(self, house: House, views: list[tuple[View, bytes]]) -> Encoding:
        path = house.lab.folder / "views.tar"
        write_views(path, views)
        digest = sha256_file(path)
        names = list(dict.fromkeys(view.sample for view, _ in views))
        dataset_ids, samples = encodings.samples_of(names)
        own = encodings.OwnViews(
            house.lab.store.put(path, digest), f"sha256:{digest}", dataset_ids, samples, VIEWS
        )
        asked = encodings.Asked.of_views(house.request, own)
        with house.lab.sessions.begin() as session:
            row = encodings.create(session, house.world.first_owner, asked)
        return house.done(row.id)

    def test_they_are_encoded_as_they_are(self, house: House) -> None:
        samples = smooth("first", 6)[::-1]
        views = self.views(house, samples, house.more)
        row = self.sent(house, views)
        found = house.encoded(row)
        assert found.seed is None
        assert found.views == VIEWS
        learner = load(house.file(row.after)).eval()
        spec = learner.spec
        place = found.keys.index(samples[0].key)
        pixels = np.asarray(Image.open(io.BytesIO(views[1][1])), dtype=np.float32) / 255
        plain = (pixels - np.array(spec.mean)) / np.array(spec.std)
        with torch.no_grad():
            features = learner.features(torch.from_numpy(plain).float().permute(2, 0, 1)[None])
        wanted = torch.nn.functional.normalize(features, dim=1)[0].numpy()
        given = found.levels["encoder"].after.views[1, place]
        np.testing.assert_allclose(given, wanted, atol=1e-4)

    def test_those_of_other_images_are_refused_by_name(self, house: House) -> None:
        views = self.views(house, smooth("first", 6), house.more)
        stranger = views[-1][1]
        views[1] = (views[1][0], stranger)
        row = self.sent(house, views)
        assert (row.job.state, row.outputs_key) == ("failed", None)
        assert "first-000__1.png" in str(row.job.reason)
        assert "first-000__0.png" not in str(row.job.reason)


def test_an_encoding_holds_no_more_than_an_audit_takes_whole() -> None:
    assert encodings.MAX_SAMPLES == MAX_PAIR_SAMPLES
