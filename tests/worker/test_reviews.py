"""Reviews as the interactive worker makes them, with real encoders: protocol's audits, later heads, alerts."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sqlalchemy import select, update
from tests.worker.lab import ENCODER, Lab, World, images

from expunge.formats.digests import sha256_file
from expunge.formats.shards import Sample, make_sample
from expunge.registry import audits, checkpoints, datasets, jobs, models, reviews
from expunge.registry.checkpoints import StoredWeights
from expunge.registry.tables import Alert, Audit, Checkpoint, Job, LogRow, Party, Shard
from expunge.unlearning import checkpoints as files
from expunge.unlearning.data.image_set import ImageSet, decode_images, sample_id
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import Learner, build
from expunge.worker import encoders
from expunge.worker.leases import kept_alive
from expunge.worker.reviewing import Reviewer

STEPS = 8


def gradients() -> list[Sample]:
    """Images from one colour to another: an encoder of sixteen pixels can tell them from noise."""
    rng = np.random.default_rng(1)
    steps = np.linspace(0, 1, 16)[:, None, None]
    found = []
    for number in range(16):
        top, bottom = rng.integers(0, 256, (2, 3))
        pixels = np.broadcast_to((1 - steps) * top + steps * bottom, (16, 16, 3))
        out = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
        found.append(make_sample(f"first-{number:03d}", "png", out.getvalue(), label=0))
    return found


def image_set(samples: list[Sample]) -> ImageSet:
    """As the encoder takes them."""
    return ImageSet(
        images=torch.stack(list(decode_images(samples, 16))),
        ids=torch.tensor([sample_id(each.sha256) for each in samples]),
        keys=[each.key for each in samples],
    )


def alike(learner: Learner, samples: ImageSet, make: Views, step: int) -> torch.Tensor:
    """Mean self-alignment of one pair of views."""
    first, second = (
        F.normalize(learner.features(make(samples.images, samples.ids, 2 * step + k)), dim=1)
        for k in (0, 1)
    )
    return (first * second).sum(1).mean()


def memorising(learner: Learner) -> Learner:
    """Fine-tuned hard until it tells the first owner's images from the control: hours of training in seconds."""
    found = copy.deepcopy(learner).eval()
    optimiser = torch.optim.Adam(found.parameters(), 1e-2)
    make = Views(ENCODER.image_size, ENCODER.mean, ENCODER.std, seed=99)
    own, control = image_set(gradients()), image_set(images("control", 12, 3))
    for step in range(STEPS):
        loss = alike(found, control, make, step) - alike(found, own, make, step)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return found


def moved(learner: Learner, seed: int) -> Learner:
    """A little further on, in no direction that has to do with anybody."""
    found = copy.deepcopy(learner)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for weights in found.parameters():
            if weights.ndim > 1:
                weights.add_(torch.randn_like(weights), alpha=0.02 * float(weights.std()))
    return found


@dataclass
class History:
    """A model whose checkpoints the test makes itself, and the requests of two owners."""

    lab: Lab
    world: World
    learner: Learner
    first: str
    second: str

    def weights(self, learner: Learner) -> StoredWeights:
        return stored(self.lab, learner)

    def new_head(self, learner: Learner, *more: str) -> str:
        """An upload, trained on the model owner's data, that comes into force; returns its id."""
        owner, model, held = self.world.model_owner, self.world.model, [self.world.own, *more]
        with self.lab.sessions.begin() as session:
            row = checkpoints.add_upload(session, owner, model, held, self.weights(learner))
            row_id = row.id
            verifying = session.scalars(select(Job).where(Job.checkpoint_id == row_id)).one().id
        lease = self.lab.claim(verifying)
        with self.lab.sessions.begin() as session:
            checkpoints.record_verified(session, lease, None)
        with self.lab.sessions.begin() as session:
            checkpoints.promote(session, owner, row_id)
        return row_id

    def queued(self) -> list[str]:
        with self.lab.sessions() as session:
            waiting = select(Job.id).where(Job.kind == "review", Job.state == "queued")
            return list(session.scalars(waiting.order_by(Job.id)))

    def review(self) -> Job:
        """Run the newest review that waits."""
        job_id = self.queued()[-1]
        self.lab.runner.run(job_id)
        job = self.lab.job(job_id)
        assert job.state == "succeeded", job.reason
        return job

    def audits(self, job_id: str) -> dict[str, Audit]:
        with self.lab.sessions() as session:
            rows = session.scalars(select(Audit).where(Audit.job_id == job_id)).all()
            return {row.request_id: row for row in rows}

    def alerts(self) -> list[Alert]:
        with self.lab.sessions() as session:
            return list(session.scalars(select(Alert).order_by(Alert.id)))

    def log(self, subject: str, event: str) -> list[LogRow]:
        with self.lab.sessions() as session:
            wanted = select(LogRow).where(LogRow.subject_id == subject, LogRow.event == event)
            return list(session.scalars(wanted))


def stored(lab: Lab, learner: Learner) -> StoredWeights:
    path = lab.folder / "made.safetensors"
    files.save(learner, path)
    digest = sha256_file(path)
    key = lab.store.put(path, digest)
    return StoredWeights(f"sha256:{digest}", key, path.stat().st_size, f"sha256:{digest}", key)


@pytest.fixture
def history(lab: Lab, world: World) -> History:
    """Both owners' requests carried out by one job; nothing is trained."""
    learner = build(ENCODER, seed=0)
    world.first = lab.sealed(world.first_owner, "gradients", gradients())
    with lab.sessions.begin() as session:
        models.set_control(session, world.model_owner, world.model, world.control)
        datasets.grant(session, world.first_owner, world.first, world.model_owner.id)
    lease = lab.claim(lab.pretraining(world.model_owner, world.model, world.training_data))
    with lab.sessions.begin() as session:
        checkpoints.record_pretrained(session, lease, stored(lab, learner), {"seconds": 1.0})
    first = lab.request(world.first_owner, world.model, [world.first])
    second = lab.request(world.second_owner, world.model, [world.second])
    result = moved(learner, 1)
    lease = lab.claim(lab.job_of(first).id)
    with lab.sessions.begin() as session:
        checkpoints.record_unlearned(session, lease, stored(lab, result), {"seconds": 1.0})
    return History(lab, world, result, first, second)


def test_a_removal_is_audited_by_the_protocol_that_was_logged_with_each_request(
    history: History,
) -> None:
    job = history.review()
    made = history.audits(job.id)
    assert set(made) == {history.first, history.second}
    for request_id, owner, count in (
        (history.first, history.world.first_owner, 16),
        (history.second, history.world.second_owner, 12),
    ):
        audit = made[request_id]
        (received,) = history.log(request_id, "received")
        fixed = received.detail["protocol"]
        assert fixed.items() <= audit.asked.items()
        assert (audit.purpose, audit.state, audit.owner_id) == ("protocol", "succeeded", owner.id)
        assert audit.report is not None
        assert audit.report["protocol"]["seed"] == fixed["seed"]
        assert audit.report["n_own"] == count
        (audited,) = history.log(request_id, "audited")
        assert audited.detail["audit_id"] == audit.id
    counts = {"audits": 2, "given_up": 0, "relearning_tests": 0, "alerts": 0}
    assert job.metrics == counts | {"alpha": 0.001, "expected_false_alarms": 0.0}


def test_an_honest_later_head_raises_nothing(history: History) -> None:
    history.review()
    head = history.new_head(moved(history.learner, 2))
    job = history.review()
    made = history.audits(job.id)
    assert {row.after_checkpoint_id for row in made.values()} == {head}
    assert {row.purpose for row in made.values()} == {"later_head"}
    assert job.metrics is not None
    assert job.metrics["relearning_tests"] == 2
    assert job.metrics["expected_false_alarms"] == pytest.approx(0.002)
    assert history.alerts() == []


def test_a_head_that_knows_forgotten_samples_again_raises_an_alert(history: History) -> None:
    history.review()
    head = history.new_head(memorising(history.learner))
    history.review()
    (alert,) = history.alerts()
    assert (alert.request_id, alert.checkpoint_id) == (history.first, head)
    assert alert.detail["p"] <= 0.001
    assert alert.detail["levels"]["encoder"]["rise"] > 0
    (logged,) = history.log(history.first, "relearned")
    assert logged.detail["alert_id"] == alert.id
    assert not history.log(history.second, "relearned")


def test_a_head_that_was_superseded_before_its_review_is_skipped(history: History) -> None:
    history.review()
    history.new_head(moved(history.learner, 2))
    newest = history.new_head(moved(history.learner, 3))
    skipped, reviewed = history.queued()
    for job_id in (skipped, reviewed):
        history.lab.runner.run(job_id)
    assert history.lab.job(skipped).metrics == {"superseded_by": newest}
    assert history.audits(skipped) == {}
    assert len(history.audits(reviewed)) == 2


class Killed(BaseException):
    """What a test does to a worker."""


def reviewer(history: History, others_first: Callable[[float], bool], **options: float) -> Reviewer:
    runner = history.lab.runner.runner
    context = history.lab.context
    return Reviewer(
        context, runner.encoders, runner.auditor, others_first, look_seconds=0, **options
    )


def test_a_review_that_was_killed_goes_on_where_it_stopped(history: History) -> None:
    (job_id,) = history.queued()

    def die_after_one(_: float) -> bool:
        if any(row.settled_at for row in history.audits(job_id).values()):
            raise Killed
        return True

    lease = history.lab.claim(job_id)
    with pytest.raises(Killed), kept_alive(history.lab.context, lease) as held:
        reviewer(history, die_after_one).run(held)
    before = {key: row.settled_at for key, row in history.audits(job_id).items()}
    assert sorted(map(bool, before.values())) == [False, True]
    states = {row.state for row in history.audits(job_id).values()}
    assert states == {"running", "succeeded"}
    with history.lab.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=Job.created_at))
    with history.lab.sessions.begin() as session:
        jobs.reclaim_expired(session, max_attempts=3)
    history.lab.runner.run(job_id)
    assert history.lab.job(job_id).state == "succeeded"
    after = {key: row.settled_at for key, row in history.audits(job_id).items()}
    assert all(after.values())
    assert all(after[key] == at for key, at in before.items() if at), "each audit is final"


def test_an_audit_that_somebody_asks_for_does_not_wait_for_the_review(history: History) -> None:
    asked = ask(history, history.world.first_owner, history.first)
    job = history.review()
    ended = history.lab.job(asked)
    assert ended.state == "succeeded", ended.reason
    settled = [row.settled_at for row in history.audits(job.id).values() if row.settled_at]
    assert ended.finished_at is not None
    assert ended.finished_at < min(settled)


def test_audits_that_keep_coming_do_not_hold_up_a_review_for_ever(history: History) -> None:
    asked = [ask(history, history.world.first_owner, history.first) for _ in range(3)]
    (job_id,) = history.queued()
    others_first = history.lab.runner.runner._work_off_before_reviews
    patience = {"longest_hold_up_seconds": 0.0, "turn_seconds": 3600.0}
    with kept_alive(history.lab.context, history.lab.claim(job_id)) as held:
        reviewer(history, others_first, **patience).run(held)
    assert history.lab.job(job_id).state == "succeeded"
    states = sorted(history.lab.job(each).state for each in asked)
    assert states == ["queued", "queued", "succeeded"], "one went first, then it was its turn"


def test_own_samples_are_held_against_none_that_only_the_later_head_was_trained_on(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "MIN_REFERENCE", 1)
    world, lab = history.world, history.lab
    more = lab.sealed(world.model_owner, "more", images("more", 12, 9))
    head = history.new_head(moved(history.learner, 2), more)
    with lab.sessions() as session:
        base = lab.job_of(history.first).base_checkpoint_id
        before, after = (session.get_one(Checkpoint, each) for each in (base, head))
    with kept_alive(lab.context, lab.claim(history.queued()[-1])) as held:
        pair = encoders.Pair(before, after, views=2, seed=0)
        found = lab.runner.runner.encoders.retained(pair, world.first_owner.id, held)
    assert found is not None
    assert len(found) == 40, "of the model owner's first data set alone"


def test_without_the_encoder_that_held_them_nothing_is_said_about_forgetting(
    history: History,
) -> None:
    """Of samples that were forgotten before, that nothing more was forgotten would alarm their owner."""
    history.review()
    history.new_head(moved(history.learner, 2))
    with history.lab.sessions.begin() as session:
        base = Checkpoint.id == history.lab.job_of(history.first).base_checkpoint_id
        session.execute(update(Checkpoint).where(base).values(state="destroyed"))
    job = history.review()
    report = history.audits(job.id)[history.first].report
    assert report is not None
    assert report["verdict"]["code"] == "no_reference"
    assert "had already forgotten" in report["verdict"]["sentence"]
    assert job.metrics is not None
    assert job.metrics["relearning_tests"] == 2


def ask(history: History, owner: Party, request_id: str) -> str:
    protocol = audits.Protocol(views=4, seed=0, matrix_size=8)
    with history.lab.sessions.begin() as session:
        return audits.create(session, owner, audits.Asked(request_id, protocol)).job_id


def test_samples_that_cannot_be_read_leave_their_request_out_and_no_other(
    history: History,
) -> None:
    with history.lab.sessions() as session:
        shards = session.scalars(select(Shard).where(Shard.dataset_id == history.world.first))
        history.lab.store.delete(shards.one().object_key)
    job = history.review()
    made = history.audits(job.id)
    assert (made[history.first].state, made[history.second].state) == ("failed", "succeeded")
    assert made[history.first].reason == "a stored object is damaged or missing"
    assert job.metrics is not None
    assert (job.metrics["audits"], job.metrics["given_up"]) == (1, 1)


def test_without_the_head_that_forgot_there_is_an_audit_but_no_test_for_relearning(
    history: History,
) -> None:
    history.new_head(moved(history.learner, 2))
    with history.lab.sessions() as session:
        result = session.get_one(Checkpoint, history.lab.job_of(history.first).result_checkpoint_id)
        history.lab.store.delete(result.object_key)
    metrics = history.review().metrics
    assert metrics is not None
    assert (metrics["audits"], metrics["given_up"], metrics["relearning_tests"]) == (2, 0, 0)


def test_what_crashed_the_last_attempt_comes_last_in_the_next(history: History) -> None:
    (job_id,) = history.queued()
    orders = []
    for _ in range(2):
        lease = history.lab.claim(job_id)
        with history.lab.sessions.begin() as session:
            left = reviews.begin(session, lease, newest=10)
            assert left is not None
            orders.append(left)
            jobs.release(session, lease, "a test")
    assert orders[0] == orders[1][::-1]


def test_repeating_the_protocols_audit_gives_the_same_numbers(history: History) -> None:
    """What the service found is what the owner finds who asks by the same protocol."""
    job = history.review()
    mine = history.audits(job.id)[history.first]
    protocol = audits.Protocol(mine.asked["views"], mine.asked["seed"], 64)
    with history.lab.sessions.begin() as session:
        row = audits.create(
            session, history.world.first_owner, audits.Asked(history.first, protocol)
        )
        job_id, audit_id = row.job_id, row.id
    # A worker of its own, which remembers nothing.
    history.lab.with_settings().run(job_id)
    with history.lab.sessions() as session:
        again = session.get_one(Audit, audit_id)
    assert again.report is not None
    assert again.report == mine.report
