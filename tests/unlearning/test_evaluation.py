import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import crop, hflip, pad

from expunge.unlearning.catalog import EncoderSpec, PretrainParams
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views, normalise
from expunge.unlearning.evaluation import Evaluation, evaluate
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.metrics.features import crop_and_flip, measuring, plain_features
from expunge.unlearning.training import pretrain

MakeImages = Callable[..., ImageSet]
Sets = tuple[ImageSet, ImageSet, ImageSet]


@pytest.fixture
def learner(simclr_spec: EncoderSpec, make_images: MakeImages) -> Learner:
    params = PretrainParams(epochs=1, batch_size=8)
    return pretrain(simclr_spec, make_images(16), params, seed=0).learner


@pytest.fixture
def sets(make_images: MakeImages) -> Sets:
    """30 retained, 9 unlearn and 12 test samples."""
    return make_images(30), make_images(9, seed=1), make_images(12, seed=2)


def forward(learner: Learner, images: Tensor) -> Tensor:
    with torch.no_grad():
        return learner.eval().features(images)


def slow_scores(learner: Learner, images: ImageSet, views: int, seed: int) -> list[float]:
    """Mean cosine over pairs of views, pair by pair."""
    spec = learner.spec
    make = Views(spec.image_size, spec.mean, spec.std, seed=seed)
    outputs = [forward(learner, make(images.images, images.ids, view)) for view in range(views)]
    pairs = [(v, w) for v in range(views) for w in range(v)]
    cosines = [F.cosine_similarity(outputs[v], outputs[w]) for v, w in pairs]
    return torch.stack(cosines).double().mean(0).tolist()


def test_ten_views_give_the_mean_of_45_cosines(learner: Learner, sets: Sets) -> None:
    result = evaluate(learner, *sets, seed=3)
    slow = slow_scores(learner, sets[1], 10, 3)
    np.testing.assert_allclose(result.scores["forget"].alignment, slow, atol=1e-6)
    assert result.scores["forget"].keys == sets[1].keys
    assert result.alignment["forget"].value == pytest.approx(2 - 2 * np.mean(slow), abs=1e-6)


def test_released_takes_the_first_retained_samples_and_the_grid(
    learner: Learner, sets: Sets
) -> None:
    retain, forget, test = sets
    result = evaluate(learner, *sets, views=4, protocol="released", augment_probe=False)
    members = np.array(slow_scores(learner, retain.subset(range(12)), 4, 0))
    others = np.array(slow_scores(learner, test, 4, 0))
    unlearned = np.array(slow_scores(learner, forget, 4, 0))
    right = [
        sum(members >= edge) + sum(others < edge)
        for edge in np.histogram_bin_edges(members, bins=500, range=(0, 1))
    ]
    threshold = int(np.argmax(right)) / 500
    assert result.emia.threshold == pytest.approx(threshold)
    assert result.emia.efficacy.value == pytest.approx(100 * (unlearned < threshold).mean())
    assert result.emia.accuracy.value == pytest.approx(100 * max(right) / 24)
    assert result.scores["retain"].keys == retain.keys[:12]


def test_corrected_draws_the_members_with_the_seed(learner: Learner, sets: Sets) -> None:
    drawn = [evaluate(learner, *sets, views=2, seed=s).scores["retain"].keys for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 12
    assert drawn[0] != sets[0].keys[:12]


def test_fewer_retained_than_test_samples_are_met_with_as_few_test_samples(
    learner: Learner, make_images: MakeImages
) -> None:
    result = evaluate(learner, make_images(5), make_images(1, seed=1), make_images(20), views=2)
    assert [len(result.scores[name].keys) for name in ("retain", "forget", "test")] == [5, 1, 5]
    assert result.emia.accuracy.n == 10
    assert result.uniformity["forget"] is None
    assert result.classification is not None
    assert result.classification.ta.n == 20


def test_accuracies_are_those_of_labels_the_features_hold(
    simclr_spec: EncoderSpec, make_images: MakeImages
) -> None:
    """Classes are brightness levels, which even random features show; U has all labels wrong."""

    def bright(count: int, seed: int) -> ImageSet:
        images = make_images(count, seed=seed)
        assert images.labels is not None
        pixels = images.images // 16 + (images.labels * 80).to(torch.uint8).view(-1, 1, 1, 1)
        return replace(images, images=pixels)

    retain, forget, test = bright(120, 0), bright(30, 1), bright(60, 2)
    assert forget.labels is not None
    wrong = replace(forget, labels=(forget.labels + 1) % 3)
    result = evaluate(build(simclr_spec, seed=0), retain, wrong, test, views=2).classification
    assert result is not None
    assert result.ra.value > 95
    assert result.ta.value > 95
    assert result.ua.value < 5
    assert result.knn_test.value > 85
    assert result.knn_forget.value < 15
    assert result.cmia.efficacy.value == 100
    assert result.cmia.auc.value == pytest.approx(0.5, abs=0.15)


class Memorising(nn.Module):
    """Known images, recognised by brightness, have one feature; others turn with their views."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.mean(dim=(1, 2, 3))
        angle = torch.where(brightness > 0, torch.zeros_like(brightness), 40 * brightness)
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_the_attack_finds_what_an_encoder_memorised_and_sees_it_forgotten(
    simclr_spec: EncoderSpec, make_images: MakeImages
) -> None:
    learner = build(simclr_spec, seed=0)
    learner.encoder = nn.Sequential(Memorising(), nn.BatchNorm1d(2, affine=False))
    retain, forget, test = (make_images(24, seed=seed) for seed in range(3))
    retain.images.clamp_(min=220)
    test.images.clamp_(max=60)
    forget.images[:18].clamp_(max=60)
    forget.images[18:].clamp_(min=220)
    result = evaluate(learner, retain, forget, test, views=6)
    assert result.emia.accuracy.value == 100
    assert result.emia.auc.value == 1
    assert result.emia.tpr_at_1_percent_fpr.value == 100
    assert result.emia.efficacy.value == pytest.approx(75)
    assert result.alignment["retain"].value < 1e-6 < result.alignment["test"].value


def test_every_number_carries_samples_and_seed_and_turns_into_json(
    learner: Learner, sets: Sets
) -> None:
    report = json.loads(json.dumps(evaluate(learner, *sets, views=2, seed=11).to_dict()))
    measures = list(measures_in(report))
    assert len(measures) == 5 + 5 + 5 + 6
    assert all(each["seed"] == 11 and each["n"] > 0 for each in measures)
    assert report["sizes"] == {"retain": 30, "forget": 9, "test": 12}
    assert (report["protocol"], report["views"], report["probe_augmented"]) == (
        "corrected",
        2,
        False,
    )
    assert "scores" not in report


def test_the_columns_are_means_of_what_their_samples_add(learner: Learner, sets: Sets) -> None:
    result = evaluate(learner, *sets, views=2)
    table, outcomes = result.table(), result.outcomes()
    assert list(table) == ["emia", "ra", "ta", "ua", "cmia"]
    assert set(outcomes) == {*table, "emia_specificity", "cmia_specificity"}
    for column, measure in table.items():
        values = outcomes[column].values.tolist()
        assert len(values) == measure.n == result.sizes[outcomes[column].counted]
        assert measure.value == pytest.approx(100 * sum(values) / len(values))
    threshold = result.emia.threshold
    judged = [score < threshold for score in result.scores["test"].alignment]
    assert outcomes["emia_specificity"].values.tolist() == judged
    assert result.emia.specificity.value == pytest.approx(100 * sum(judged) / 12)


def measures_in(report: object) -> list[dict[str, float]]:
    if not isinstance(report, dict):
        return []
    if "value" in report:
        return [report]
    return [measure for each in report.values() for measure in measures_in(each)]


def test_without_labels_only_what_needs_none_is_measured(learner: Learner, sets: Sets) -> None:
    retain, forget, test = sets
    result = evaluate(learner, retain, replace(forget, labels=None), test, views=2)
    assert result.classification is None
    assert list(result.table()) == ["emia"]
    assert set(result.outcomes()) == {"emia", "emia_specificity"}
    assert result.scores["test"].confidence is None
    assert result.emia.efficacy.n == 9


def test_an_augmented_probe_sees_other_features_than_a_plain_one(
    learner: Learner, sets: Sets
) -> None:
    def confidence(result: Evaluation) -> list[float]:
        found = result.scores["test"].confidence
        assert found is not None
        return found.tolist()

    plain = evaluate(learner, *sets, views=2)
    released = evaluate(learner, *sets, views=2, protocol="released")
    again = evaluate(learner, *sets, views=2, protocol="released")
    assert (plain.probe_augmented, released.probe_augmented) == (False, True)
    assert confidence(plain) != confidence(released) == confidence(again)


def test_scores_belong_to_their_keys_whoever_else_was_drawn(learner: Learner, sets: Sets) -> None:
    drawn = evaluate(learner, *sets, views=2).scores["retain"]
    first = evaluate(learner, *sets, views=2, protocol="released", augment_probe=False)
    both = [key for key in first.scores["retain"].keys if key in drawn.keys]
    assert 2 < len(both) < 12
    for kind in ("alignment", "confidence"):
        known = dict(zip(drawn.keys, getattr(drawn, kind), strict=True))
        other = first.scores["retain"]
        again = dict(zip(other.keys, getattr(other, kind), strict=True))
        assert [known[key] for key in both] == pytest.approx([again[key] for key in both])


def test_the_encoder_is_left_as_it_was(learner: Learner, sets: Sets) -> None:
    learner.train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(learner, *sets, views=2)
    assert learner.training
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_what_cannot_be_measured_is_refused(
    learner: Learner, sets: Sets, make_images: MakeImages
) -> None:
    retain, forget, test = sets
    with pytest.raises(ValueError, match="the forget set is empty"):
        evaluate(learner, retain, forget.subset([]), test)
    with pytest.raises(ValueError, match="test images of 32 pixels"):
        evaluate(learner, retain, forget, make_images(4, size=32))
    with pytest.raises(ValueError, match="two views"):
        evaluate(learner, *sets, views=1)
    with torch.no_grad():
        learner.encoder.conv1.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        evaluate(learner, *sets, views=2)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_a_classifier_does_not_have_are_refused(
    supervised_spec: EncoderSpec, sets: Sets, label: int
) -> None:
    retain, forget, test = sets
    assert test.labels is not None
    wrong = replace(test, labels=test.labels.clone().index_fill_(0, torch.tensor([4]), label))
    with pytest.raises(ValueError, match=f"a test sample has label {label}, but .* 0 to 2"):
        evaluate(build(supervised_spec, seed=0), retain, forget, wrong, views=2)


def test_a_classifier_of_its_own_is_no_augmented_probe(
    supervised_spec: EncoderSpec, sets: Sets
) -> None:
    learner = build(supervised_spec, seed=0)
    assert not evaluate(learner, *sets, views=2, protocol="released").probe_augmented


def test_crop_and_flip_equals_torchvisions(make_images: MakeImages) -> None:
    images = make_images(6).images
    draws = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    draws[0], draws[1] = torch.tensor([0.0, 0.999, 0.4]), torch.tensor([0.999, 0.0, 0.6])
    for image, draw, ours in zip(images, draws, crop_and_flip(images, draws), strict=True):
        top, left = int(9 * draw[0]), int(9 * draw[1])
        slow = crop(pad(image, [4]), top, left, 16, 16)
        assert torch.equal(ours, hflip(slow) if draw[2] < 0.5 else slow)


def test_plain_features_are_those_of_the_normalised_images(learner: Learner, sets: Sets) -> None:
    device, spec = torch.device("cpu"), learner.spec
    with measuring(learner, device):
        ours = plain_features(learner, sets[0], device)
    slow = forward(learner, normalise(sets[0].images, spec.mean, spec.std))
    torch.testing.assert_close(ours, slow)
