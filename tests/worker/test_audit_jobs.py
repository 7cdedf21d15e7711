"""Audits as the interactive worker computes them."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine, update
from tests.worker.lab import SMALLEST_CLIP, Hands, Lab, World, images

from expunge.evidence.pictures.bundle import Bundle, unpack
from expunge.evidence.subset import subset_digest
from expunge.registry import audits, datasets, models
from expunge.registry.audits import Asked, Protocol
from expunge.registry.lifecycles import CheckpointState, DatasetState
from expunge.registry.objects import DirectoryStore, ObjectMissing, read_bytes
from expunge.registry.subsets import Draw, Indexes
from expunge.registry.tables import Audit, Checkpoint, Dataset, Party, Role
from expunge.worker.context import Context


@pytest.fixture(scope="module")
def lab(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(engine, tmp_path_factory.mktemp("audits"))


@pytest.fixture(scope="module")
def trained(lab: Lab) -> World:
    """As elsewhere, but the second owner has two data sets whose samples have the same keys."""
    world = World(lab)
    more = lab.sealed(world.second_owner, "more", images("second", 12, 9))
    with lab.sessions.begin() as session:
        datasets.grant(session, world.second_owner, more, world.model_owner.id)
    lab.runner.run(lab.pretraining(world.model_owner, world.model, [*world.training_data, more]))
    world.seconds = [world.second, more]
    return world


@pytest.fixture(scope="module")
def unlearned(lab: Lab, trained: World) -> dict[str, str]:
    """Both owners' requests carried out, one after the other: owner's name → request.

    After the first, 64 samples of others are retained; after the second, 40.
    """
    set_control(lab, trained.model_owner, trained.model, trained.control)
    found = {}
    for owner, chosen in (
        (trained.first_owner, [trained.first]),
        (trained.second_owner, trained.seconds),
    ):
        request = lab.request(owner, trained.model, chosen)
        lab.runner.run(lab.job_of(request).id)
        found[owner.name] = request
    return found


def set_control(lab: Lab, owner: Party, model: str, dataset: str) -> None:
    with lab.sessions.begin() as session:
        models.set_control(session, owner, model, dataset)


def queued(
    lab: Lab, owner: Party, request: str, seed: int = 0, size: int = 8, **asked: Any
) -> Audit:
    """An audit that waits."""
    with lab.sessions.begin() as session:
        return audits.create(session, owner, Asked(request, Protocol(4, seed, size), **asked))


def ended(lab: Lab, row: Audit, hands: Hands | None = None) -> Audit:
    """The audit, once a worker has made it or failed."""
    (hands or lab.runner).run(row.job_id)
    with lab.sessions() as session:
        return session.get_one(Audit, row.id)


def ask(lab: Lab, owner: Party, request: str, **asked: Any) -> Audit:
    """Have an audit made; it may fail."""
    return ended(lab, queued(lab, owner, request, **asked))


def audit(lab: Lab, owner: Party, request: str, **asked: Any) -> dict[str, Any]:
    """The report of an audit that succeeds."""
    found = ask(lab, owner, request, **asked)
    assert found.job.state == "succeeded", found.job.reason
    assert found.report is not None
    return found.report


def scores(report: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = report["levels"]["encoder"]["forgetting_score"]["per_sample"]
    return found


def strings(value: Any) -> set[str]:
    match value:
        case dict():
            return set(value) | {s for each in value.values() for s in strings(each)}
        case list():
            return {s for each in value for s in strings(each)}
        case str():
            return {value}
    return set()


def test_an_audit_holds_the_owners_samples_and_nothing_of_others(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = audit(lab, trained.first_owner, unlearned["first owner"])
    assert (found["n_own"], found["n_retained"], found["n_control"]) == (12, 64, 12)
    assert found["test"]["n_reference"] == 64
    named = strings(found)
    assert "first-000" in named
    assert not [each for each in named if each.startswith(("second-", "own-", "control-"))]
    assert set(found["levels"]) == {"encoder", "projector"}


def test_repeating_an_audit_gives_the_same_numbers_and_pictures(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    first = ask(lab, trained.first_owner, unlearned["first owner"])
    again = ask(lab, trained.first_owner, unlearned["first owner"])
    row = queued(lab, trained.first_owner, unlearned["first owner"])
    lab.with_settings().run(row.job_id)
    with lab.sessions() as session:
        fresh = session.get_one(Audit, row.id)
    other = ask(lab, trained.first_owner, unlearned["first owner"], seed=1)
    assert first.report == again.report == fresh.report
    assert first.objects == again.objects == fresh.objects
    assert first.report != other.report


def test_samples_of_two_data_sets_with_the_same_keys_are_told_apart(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = audit(lab, trained.second_owner, unlearned["second owner"])
    assert found["n_own"] == 24
    assert set(scores(found)) == {
        f"{each}/second-{n:03d}" for each in trained.seconds for n in range(12)
    }


def test_chosen_samples_are_audited_as_within_the_whole(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    first, more = trained.seconds
    keys = (f"{more}/second-003", f"{first}/second-010")
    request = unlearned["second owner"]
    whole = scores(audit(lab, trained.second_owner, request))
    # A worker of its own, which remembers nothing.
    row = queued(lab, trained.second_owner, request, sample_keys=keys)
    part = ended(lab, row, lab.with_settings()).report
    assert part is not None
    assert scores(part) == {key: whole[key] for key in keys}
    alone = audit(
        lab, trained.second_owner, request, dataset_ids=(more,), sample_keys=("second-003",)
    )
    assert set(scores(alone)) == {"second-003"}
    assert alone["n_own"] == 1


def test_a_draw_is_of_the_size_asked_for_and_repeats(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    owner, request = trained.second_owner, unlearned["second owner"]
    drawn = [
        set(scores(audit(lab, owner, request, draw=Draw(samples, seed))))
        for samples, seed in ((5, 1), (5, 1), (5, 2), (100, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(each) for each in drawn] == [5, 5, 5, 24]


def test_the_report_says_what_a_repetition_needs(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = audit(lab, trained.first_owner, unlearned["first owner"], draw=Draw(3, 1))
    with lab.sessions() as session:
        row = session.get_one(Dataset, trained.first)
        job = lab.job_of(unlearned["first owner"])
        before = session.get_one(Checkpoint, job.base_checkpoint_id).digest
        after = session.get_one(Checkpoint, job.result_checkpoint_id).digest
    digests = {each.key: each.sha256 for each in Indexes(lab.store).records(row)}
    protocol = found["protocol"]
    assert protocol.pop("code").startswith("expunge ")
    assert protocol == {
        "subset": {"samples": 3, "digest": subset_digest(digests[key] for key in scores(found))},
        "views": 4,
        "seed": 0,
        "matrix_size": 8,
        "before": before,
        "after": after,
    }


def test_the_bundle_holds_matrices_and_small_pictures_of_the_own_samples(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = ask(lab, trained.second_owner, unlearned["second owner"], size=5)
    bundle = bundle_of(lab, found)
    assert found.report is not None
    assert list(bundle.keys) == found.report["matrix_keys"]
    for level in ("encoder", "projector"):
        before, after, gap = (bundle.matrices[level][each] for each in ("before", "after", "gap"))
        assert gap.shape == (5, 5)
        np.testing.assert_allclose(gap, before - after, atol=1e-6)
        own = found.report["levels"][level]["forgetting_score"]["per_sample"]
        np.testing.assert_allclose(np.diag(gap), [own[key] for key in bundle.keys], atol=1e-6)
    assert bundle.thumbnails is not None
    assert bundle.thumbnails.shape == (5, 16, 16, 3)
    with lab.sessions() as session:
        rows = [session.get_one(Dataset, each) for each in trained.seconds]
    name = bundle.keys[0]
    dataset = next(row for row in rows if name.startswith(row.id))
    record = next(r for r in Indexes(lab.store).records(dataset) if name.endswith(f"/{r.key}"))
    expected = pixels(lab, dataset, record)
    np.testing.assert_array_equal(bundle.thumbnails[0], expected)


def test_fewer_than_64_retained_samples_of_others_give_numbers_without_a_verdict(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    found = audit(lab, trained.second_owner, unlearned["second owner"])
    assert found["verdict"]["code"] == "no_reference"
    assert (found["n_retained"], found["test"], found["null_quantiles"]) == (0, None, None)
    assert found["levels"]["encoder"]["control"] is not None


def test_a_model_without_control_images_is_audited_without_them(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    with lab.sessions.begin() as session:
        control = update(Dataset).where(Dataset.id == trained.control)
        session.execute(control.values(state=DatasetState.DELETING))
    found = audit(lab, trained.first_owner, unlearned["first owner"])
    with lab.sessions.begin() as session:
        session.execute(control.values(state=DatasetState.SEALED))
    assert (found["n_control"], found["power"], found["membership"]) == (0, None, None)
    assert found["test"] is not None


@pytest.mark.parametrize(("count", "taken"), [(7, 0), (8, 8)])
def test_a_control_of_a_few_images_is_as_good_as_none(
    lab: Lab, trained: World, unlearned: dict[str, str], count: int, taken: int
) -> None:
    """What is said of them together would tell of each."""
    few = lab.sealed(trained.model_owner, f"{count}", images("few", count, 20))
    set_control(lab, trained.model_owner, trained.model, few)
    found = audit(lab, trained.first_owner, unlearned["first owner"], seed=1)
    set_control(lab, trained.model_owner, trained.model, trained.control)
    assert found["n_control"] == taken
    assert (found["levels"]["encoder"]["control"] is None) == (taken == 0)


def test_pairs_are_audited_beside_control_images_that_have_captions(lab: Lab) -> None:
    owner = lab.party("owner of pairs", Role.MODEL_OWNER)
    mine, kept = (
        lab.sealed(owner, name, images(name, 8, number, captioned=True))
        for number, name in enumerate(("mine", "kept"))
    )
    bare = lab.sealed(owner, "bare", images("bare", 9, 5))
    mixed = lab.sealed(
        owner, "mixed", [*images("with", 8, 6, captioned=True), *images("without", 3, 7)]
    )
    model = lab.model(owner, SMALLEST_CLIP, name="pairs", control_dataset_id=mixed)
    lab.runner.run(lab.pretraining(owner, model, [mine, kept]))
    request = lab.request(owner, model, [mine])
    lab.runner.run(lab.job_of(request).id)
    found = audit(lab, owner, request)
    assert set(found["levels"]) == {"encoder", "image_text"}
    assert (found["n_own"], found["n_control"]) == (8, 8)
    set_control(lab, owner, model, bare)
    assert audit(lab, owner, request)["n_control"] == 0


def test_an_audit_of_samples_that_were_deleted_says_so(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    row = queued(lab, trained.first_owner, unlearned["first owner"])
    with lab.sessions.begin() as session:
        own = update(Dataset).where(Dataset.id == trained.first)
        session.execute(own.values(state=DatasetState.DELETING))
    found = ended(lab, row)
    with lab.sessions.begin() as session:
        session.execute(own.values(state=DatasetState.SEALED))
    assert found.job.state == "failed"
    assert found.job.reason == f"the samples of {trained.first} were deleted"


def test_an_audit_without_weights_says_so(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    base = lab.job_of(unlearned["first owner"]).base_checkpoint_id
    row = queued(lab, trained.first_owner, unlearned["first owner"])
    with lab.sessions.begin() as session:
        before = update(Checkpoint).where(Checkpoint.id == base)
        session.execute(before.values(state=CheckpointState.DESTROYED))
    found = ended(lab, row)
    with lab.sessions.begin() as session:
        session.execute(before.values(state=CheckpointState.READY))
    assert (found.job.state, found.job.reason) == (
        "failed",
        f"the weights of {base} were destroyed",
    )


def test_an_image_that_is_not_what_was_sealed_is_not_audited(
    lab: Lab, trained: World, unlearned: dict[str, str]
) -> None:
    with lab.sessions() as session:
        shard = session.get_one(Dataset, trained.first).shards[0]
    path = next(lab.folder.rglob(shard.object_key.rpartition("/")[2]))
    sound = path.read_bytes()
    records = Indexes(lab.store).records(_dataset(lab, trained.first))
    broken = bytearray(sound)
    broken[next(iter(records)).offset + 40] ^= 1
    path.chmod(0o644)
    path.write_bytes(broken)
    row = queued(lab, trained.first_owner, unlearned["first owner"])
    lab.with_settings().run(row.job_id)
    path.write_bytes(sound)
    job = lab.job(row.job_id)
    assert (job.state, job.reason) == ("failed", "a stored object is damaged or missing")


class Vanishing(DirectoryStore):
    """A store from which an owner deletes a data set when its samples are read."""

    def __init__(self, lab: Lab, dataset: Dataset) -> None:
        super().__init__(lab.folder / "objects")
        self._lab, self._dataset = lab, dataset

    def part(self, key: str, start: int, size: int) -> bytes:
        if key == self._dataset.shards[0].object_key:
            set_state(self._lab, self._dataset.id, DatasetState.DELETING)
            raise ObjectMissing(key)
        return super().part(key, start, size)


def set_state(lab: Lab, dataset_id: str, state: DatasetState) -> None:
    with lab.sessions.begin() as session:
        session.execute(update(Dataset).where(Dataset.id == dataset_id).values(state=state))


@pytest.mark.parametrize(("which", "left"), [("second", (0, 12)), ("control", (64, 0))])
def test_samples_of_others_that_are_deleted_while_they_are_read_are_left_out(
    lab: Lab, trained: World, unlearned: dict[str, str], which: str, left: tuple[int, int]
) -> None:
    """Of the 64 retained ones 52 are left, too few to compare with."""
    dataset = _dataset(lab, getattr(trained, which))
    store = Vanishing(lab, dataset)
    row = queued(lab, trained.first_owner, unlearned["first owner"])
    Hands(Context(lab.settings, lab.sessions, store)).run(row.job_id)
    set_state(lab, dataset.id, DatasetState.SEALED)
    with lab.sessions() as session:
        found = session.get_one(Audit, row.id)
        assert found.job.state == "succeeded", found.job.reason
        assert found.report is not None
        assert (found.report["n_retained"], found.report.get("n_control", 0)) == left


def _dataset(lab: Lab, dataset_id: str) -> Dataset:
    with lab.sessions() as session:
        return session.get_one(Dataset, dataset_id)


def bundle_of(lab: Lab, found: Audit) -> Bundle:
    key = audits.bundle_key(found)
    assert key is not None
    return unpack(read_bytes(lab.store, key))


def pixels(lab: Lab, dataset: Dataset, record: Any) -> Any:
    """(16, 16, 3) uint8 of a sample, read from its shard."""
    shard = next(each for each in dataset.shards if each.name == record.shard)
    data = read_bytes(lab.store, shard.object_key)[record.offset : record.offset + record.size]
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
