"""Supervised encoders: cross-entropy against slow twins, and the labels they accept."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from expunge.formats.tensors import write_release
from expunge.unlearning.catalog import METHODS, EncoderSpec, PretrainParams, parse_params
from expunge.unlearning.checkpoints import save
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.errors import LabelError
from expunge.unlearning.frameworks import Contrast, Supervised, build
from expunge.unlearning.frameworks.supervised import cross_entropy_terms
from expunge.unlearning.training import pretrain, unlearn

MakeImages = Callable[..., ImageSet]
SHORT = PretrainParams(epochs=1, batch_size=8)


def some_logits(batch: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + classes)
    logits = 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (batch,), generator=generator)


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_cross_entropy_equals_the_slow_twin(batch: int, classes: int) -> None:
    logits, labels = some_logits(batch, classes)
    alignment, partition = cross_entropy_terms(logits, labels)
    assert alignment.shape == partition.shape == (1, batch)
    for i in range(batch):
        assert float(alignment[0, i]) == float(logits[i, int(labels[i])])
        total = sum(math.exp(float(logit)) for logit in logits[i])
        assert float(partition[0, i]) == pytest.approx(math.log(total), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("classes", [2, 10])
def test_cross_entropy_equals_torchs(batch: int, classes: int) -> None:
    logits, labels = some_logits(batch, classes)
    ours = Contrast(*cross_entropy_terms(logits, labels))
    torch.testing.assert_close(ours.mean_loss(), F.cross_entropy(logits, labels))
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(ours.sample_losses(), each)


def test_gradients_equal_finite_differences() -> None:
    logits, labels = some_logits(4, 3)

    def losses(logits: Tensor) -> Tensor:
        return Contrast(*cross_entropy_terms(logits, labels)).sample_losses()

    assert torch.autograd.gradcheck(losses, (logits.requires_grad_(),))


def test_a_batch_is_classified_by_its_first_views(supervised_spec: EncoderSpec) -> None:
    learner = build(supervised_spec, seed=0).eval()
    assert isinstance(learner, Supervised)
    x, labels = torch.randn(5, 3, 16, 16), torch.tensor([0, 2, 1, 1, 0])
    contrast = learner.contrast(x, labels, torch.arange(5))
    logits = learner.classifier(learner.encoder(x))
    torch.testing.assert_close(contrast.mean_loss(), F.cross_entropy(logits, labels))
    assert not learner.has_projector
    torch.testing.assert_close(
        learner.projections(x), F.normalize(learner.encoder(x), dim=1), rtol=1e-4, atol=1e-6
    )


def test_training_learns_the_labels(make_images: MakeImages, supervised_spec: EncoderSpec) -> None:
    images = make_images(24)
    params = PretrainParams(epochs=20, batch_size=12)
    history = pretrain(supervised_spec, images, params, seed=0).history
    assert history[0]["loss"] == pytest.approx(math.log(3), abs=0.5)
    assert history[-1]["loss"] < history[0]["loss"] - 0.2


def test_samples_without_labels_are_refused(
    make_images: MakeImages, supervised_spec: EncoderSpec
) -> None:
    plain = replace(make_images(8), labels=None)
    with pytest.raises(LabelError, match="labels 0 to 2, but not every sample has one"):
        pretrain(supervised_spec, plain, SHORT, seed=0)
    learner = build(supervised_spec, seed=0)
    with pytest.raises(LabelError):
        unlearn(learner, make_images(8), plain, "neg_grad", {"epochs": 1}, seed=0)


def test_labels_the_classifier_does_not_have_are_refused(
    make_images: MakeImages, supervised_spec: EncoderSpec
) -> None:
    wrong = replace(make_images(8), labels=torch.arange(8))
    with pytest.raises(LabelError, match="labels 0 to 2, but one is 7"):
        pretrain(supervised_spec, wrong, SHORT, seed=0)


@pytest.mark.parametrize("framework", ["byol", "supervised"])
def test_every_method_that_is_defined_changes_finite_weights(
    make_images: MakeImages, byol_spec: EncoderSpec, supervised_spec: EncoderSpec, framework: str
) -> None:
    spec = {"byol": byol_spec, "supervised": supervised_spec}[framework]
    learner = pretrain(spec, make_images(16), SHORT, seed=0).learner
    before = learner.encoder.conv1.weight
    offered = [method for method in METHODS.values() if framework in method.frameworks]
    assert len(offered) >= 5
    for method in offered:
        params = parse_params(method.id, framework, {"epochs": 1, "batch_size": 8})
        for size in (1, 4):
            forget = make_images(size, seed=1)
            run = unlearn(learner, make_images(12), forget, method.id, params, seed=0)
            after = run.learner.encoder.conv1.weight
            assert not torch.equal(before, after), (method.id, size)
            assert all(value.isfinite().all() for value in run.learner.state_dict().values())


def test_the_classifier_leaves_in_a_release(supervised_spec: EncoderSpec, tmp_path: Path) -> None:
    learner = build(supervised_spec, seed=0)
    save(learner, tmp_path / "whole")
    write_release(tmp_path / "whole", tmp_path / "released")
    released = load_file(tmp_path / "released")
    assert released.keys() == learner.state_dict().keys()
    assert "classifier.weight" in released


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_the_classifier_does_not_have_is_named(
    supervised_spec: EncoderSpec, make_images: Callable[..., ImageSet], label: int
) -> None:
    images = make_images(4)
    wrong = replace(images, labels=torch.tensor([0, 1, 2, label]))
    with pytest.raises(LabelError, match=f"but one is {label}"):
        pretrain(supervised_spec, wrong, {"epochs": 1}, seed=0)
