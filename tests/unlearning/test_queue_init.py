"""What MoCo's queue holds when unlearning begins, and what is left of it after."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.formats.tensors import write_release
from expunge.unlearning.catalog import EncoderSpec, PretrainParams
from expunge.unlearning.checkpoints import save
from expunge.unlearning.data.augmentation import training_views
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import MoCo, build
from expunge.unlearning.frameworks.moco import EMPTY, RANDOM
from expunge.unlearning.progress import TrainingResult
from expunge.unlearning.training import pretrain, unlearn

MakeImages = Callable[..., ImageSet]


@pytest.fixture
def images(make_images: MakeImages) -> ImageSet:
    return make_images(40)


@pytest.fixture
def learner(images: ImageSet, moco_spec: EncoderSpec) -> MoCo:
    """Its queue of 24 holds samples that will be unlearned and others."""
    params = PretrainParams(epochs=1, batch_size=8)
    trained = pretrain(moco_spec, images, params, seed=0).learner
    assert isinstance(trained, MoCo)
    assert 0 < int(torch.isin(trained.queue_ids, images.ids[30:]).sum()) < 24
    return trained


@pytest.fixture
def forget(images: ImageSet, learner: MoCo) -> Callable[..., TrainingResult]:
    """Two steps an epoch on ten unlearn samples: the queue is seen as after so many keys."""

    def run(method: str, **params: object) -> TrainingResult:
        retain, unlearned = images.subset(range(30)), images.subset(range(30, 40))
        settings = {"epochs": 1, "batch_size": 4, **params}
        return unlearn(learner, retain, unlearned, method, settings, seed=0)

    return run


def first_queue(
    forget: Callable[..., TrainingResult], monkeypatch: pytest.MonkeyPatch, **params: object
) -> tuple[Tensor, Tensor]:
    """Rows and ids of the queue at the first step."""
    seen: list[tuple[Tensor, Tensor]] = []
    advance = MoCo.advance

    def spy(self: MoCo, progress: float) -> None:
        seen.append((self.queue.clone(), self.queue_ids.clone()))
        advance(self, progress)

    monkeypatch.setattr(MoCo, "advance", spy)
    forget("alignment_calibration", **params)
    return seen[0]


@pytest.mark.parametrize("given", [{}, {"queue_init": "checkpoint"}, {"queue_init": None}])
def test_by_default_the_stored_queue_without_unlearn_samples(
    forget: Callable[..., TrainingResult],
    learner: MoCo,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, object],
) -> None:
    rows, ids = first_queue(forget, monkeypatch, **given)
    dropped = torch.isin(learner.queue_ids, images.ids[30:])
    assert torch.equal(ids, torch.where(dropped, EMPTY, learner.queue_ids))
    assert torch.equal(rows[~dropped], learner.queue[~dropped])
    assert (rows[dropped] == 0).all()


def test_retain_fills_it_with_keys_of_retained_samples(
    forget: Callable[..., TrainingResult],
    learner: MoCo,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, ids = first_queue(forget, monkeypatch, queue_init="retain")
    place = {sample: i for i, sample in enumerate(images.ids[:30].tolist())}
    found = [place[sample] for sample in ids.tolist()]
    assert len(set(found)) == 24
    views = training_views(learner.spec, seed=0)
    learner.eval()
    for row, i in zip(rows, found, strict=True):
        view = views(images.images[i : i + 1], images.ids[i : i + 1], 0)
        with torch.no_grad():
            key = learner.key_projector(learner.key_encoder(view))
        torch.testing.assert_close(row, nn.functional.normalize(key, dim=1)[0])


def test_a_queue_without_any_row_is_filled_with_retained_keys(
    images: ImageSet, moco_spec: EncoderSpec
) -> None:
    """Otherwise the first step of gradient ascent would have a constant loss, and be none."""
    fresh = build(moco_spec, seed=0)
    retain, unlearned = images.subset(range(30)), images.subset(range(30, 40))
    result = unlearn(fresh, retain, unlearned, "gradient_ascent", {"epochs": 1}, seed=0)
    assert result.steps == 1
    assert result.history[0]["unlearn"] > 0.1


def test_retain_leaves_slots_empty_where_samples_are_few(
    make_images: MakeImages,
    learner: MoCo,
    images: ImageSet,
) -> None:
    few, params = images.subset(range(6)), {"epochs": 1, "batch_size": 2, "queue_init": "retain"}
    run = unlearn(learner, few, make_images(1, seed=9), "fine_tune", params, seed=0)
    assert isinstance(run.learner, MoCo)
    assert set(run.learner.queue_ids.tolist()) == {EMPTY, *few.ids.tolist()}


def test_filling_changes_no_running_statistics(learner: MoCo, images: ImageSet) -> None:
    before = {name: value.clone() for name, value in learner.key_encoder.state_dict().items()}
    learner.train()
    views = training_views(learner.spec, seed=0)
    learner.fill_queue(views(images.images, images.ids, 0), images.ids)
    assert learner.key_encoder.training
    assert all(torch.equal(v, before[n]) for n, v in learner.key_encoder.state_dict().items())
    assert learner.queue_ids[int(learner.queue_pointer)] == images.ids[-24]


def test_random_fills_it_with_unit_rows_of_no_sample(
    forget: Callable[..., TrainingResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, ids = first_queue(forget, monkeypatch, queue_init="random")
    assert (ids == RANDOM).all()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(24))
    cosines = rows @ rows.T - torch.eye(24)
    assert float(cosines.mean().abs()) < 0.1


def test_random_rows_act_as_negatives_and_survive_a_purge(moco_spec: EncoderSpec) -> None:
    learner = build(moco_spec, seed=0).eval()
    assert isinstance(learner, MoCo)
    x = torch.randn(3, 3, 16, 16)
    alone = learner.contrast(x, x, torch.arange(3)).log_partition
    learner.scramble_queue()
    assert learner.purge(torch.arange(3)) == 0
    assert (learner.contrast(x, x, torch.arange(3)).log_partition > alone).all()


@pytest.mark.parametrize("queue_init", ["checkpoint", "retain", "random"])
def test_the_choice_is_the_seeds_and_matters(
    forget: Callable[..., TrainingResult], queue_init: str
) -> None:
    one, two = (forget("fine_tune", queue_init=queue_init).learner for _ in range(2))
    assert all(torch.equal(v, two.state_dict()[n]) for n, v in one.state_dict().items())
    other = forget("fine_tune", queue_init="random" if queue_init == "retain" else "retain")
    assert not torch.equal(other.learner.projector.weight, one.projector.weight)


@pytest.mark.parametrize("queue_init", ["checkpoint", "retain", "random"])
def test_after_gradient_ascent_nothing_of_unlearn_samples_is_kept_or_released(
    forget: Callable[..., TrainingResult], images: ImageSet, tmp_path: Path, queue_init: str
) -> None:
    after = forget("gradient_ascent", queue_init=queue_init, epochs=3).learner
    assert isinstance(after, MoCo)
    assert not torch.isin(after.queue_ids, images.ids[30:]).any()
    assert (after.queue[after.queue_ids == EMPTY] == 0).all()
    save(after, tmp_path / "whole")
    write_release(tmp_path / "whole", tmp_path / "released")
    released = load_file(tmp_path / "released")
    assert {name.split(".")[0] for name in released} == {"encoder", "projector"}
    keys = {
        value.numpy().tobytes()
        for n, value in load_file(tmp_path / "whole").items()
        if n.startswith("key_") and value.is_floating_point() and value.ndim > 1
    }
    assert not keys & {value.numpy().tobytes() for value in released.values()}
