import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from expunge.unlearning import audit as module
from expunge.unlearning.audit import MIN_SAMPLES, audit
from expunge.unlearning.catalog import EncoderSpec, PretrainParams
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.metrics.alignment import alignment_matrix
from expunge.unlearning.training import pretrain

MakeImages = Callable[..., ImageSet]


@pytest.fixture
def before(make_images: MakeImages, simclr_spec: EncoderSpec) -> Learner:
    return pretrain(
        simclr_spec, make_images(16), PretrainParams(epochs=1, batch_size=8), seed=0
    ).learner


@pytest.fixture
def after(make_images: MakeImages, simclr_spec: EncoderSpec) -> Learner:
    return pretrain(
        simclr_spec, make_images(16), PretrainParams(epochs=4, batch_size=8), seed=1
    ).learner


def test_matrices_and_scores_are_those_of_the_outputs(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    own = make_images(9, seed=3)
    report = audit(before, after, own, None, views=3, seed=5, bootstrap=50)
    make = Views(16, before.spec.mean, before.spec.std, seed=5)
    made = [make(own.images, own.ids, view) for view in range(3)]
    expected = {}
    with torch.no_grad():
        for name, learner in (("before", before), ("after", after)):
            features = [nn.functional.normalize(learner.features(v), dim=1) for v in made]
            expected[name] = alignment_matrix(torch.stack(features).double().numpy())
    shown = report.matrices["encoder"]
    np.testing.assert_allclose(shown["before"], expected["before"], atol=1e-5)
    np.testing.assert_allclose(shown["after"], expected["after"], atol=1e-5)
    np.testing.assert_allclose(shown["gap"], shown["before"] - shown["after"], atol=1e-6)
    scores = list(report.levels["encoder"].per_sample.values())
    np.testing.assert_allclose(scores, np.diagonal(shown["gap"]), atol=1e-6)
    off = expected["before"][~np.eye(9, dtype=bool)]
    negative = report.levels["encoder"].own.negative_alignment
    assert negative is not None
    assert negative.before.mean == pytest.approx(off.mean(), abs=1e-5)
    assert negative.before.std == pytest.approx(off.std(), abs=1e-5)


def test_an_encoder_against_itself_shows_no_change(
    make_images: MakeImages, before: Learner
) -> None:
    report = audit(before, before, make_images(10), make_images(12, seed=1), bootstrap=50)
    assert report.verdict.code == "no_change_detected"
    assert (report.matrices["projector"]["gap"] == 0).all()


def test_another_treatment_of_own_samples_is_detected(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    """Own images are bright, the control dark, and the second encoder sees bright ones inverted."""
    before, after = build(simclr_spec, seed=0), build(simclr_spec, seed=0)
    with torch.no_grad():
        after.encoder.conv1.weight.neg_()
    bright, dark = make_images(30, seed=1), make_images(30, seed=2)
    bright.images.clamp_(min=200)
    dark.images.clamp_(max=50)
    report = audit(before, after, bright, dark, bootstrap=400)
    assert report.verdict.code == "change_detected"
    assert "against the control" not in report.verdict.sentence
    assert "differs by" in report.verdict.sentence


def test_the_report_is_reproducible_and_ready_for_json(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    own, control = make_images(10), make_images(12, seed=1)
    one, two = (audit(before, after, own, control, seed=4, bootstrap=50) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False)) == one.to_dict()


def test_a_samples_score_does_not_depend_on_the_others(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    own = make_images(12)
    whole = audit(before, after, own, None, bootstrap=10).levels["encoder"].per_sample
    part = audit(before, after, own.subset([7, 2]), None, bootstrap=10)
    for key, score in part.levels["encoder"].per_sample.items():
        assert score == pytest.approx(whole[key], abs=1e-5)


def test_one_sample_has_a_score_and_no_off_diagonal(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    report = audit(before, after, make_images(1), make_images(12, seed=1), bootstrap=20)
    level = report.to_dict()["levels"]["projector"]
    assert level["negative_alignment"] is None
    assert level["forgetting_score"]["interval"] is None
    assert level["contrast"] is None
    assert report.verdict.code == "too_few_samples"
    assert report.matrices["encoder"]["gap"].shape == (1, 1)


@pytest.mark.parametrize(
    ("sizes", "code"),
    [
        ((MIN_SAMPLES, 0), "no_control"),
        ((MIN_SAMPLES - 1, 20), "too_few_samples"),
        ((20, MIN_SAMPLES - 1), "too_few_samples"),
    ],
)
def test_no_verdict_without_enough_samples(
    make_images: MakeImages, before: Learner, after: Learner, sizes: tuple[int, int], code: str
) -> None:
    own, control = (make_images(size, seed=seed) for seed, size in enumerate(sizes))
    report = audit(before, after, own, control, bootstrap=20)
    assert report.verdict.code == code
    assert report.levels["encoder"].contrast is None


def test_nothing_of_single_control_samples_is_reported(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    control = make_images(12, seed=1)
    report = audit(before, after, make_images(10), control, bootstrap=20)
    text = json.dumps(report.to_dict())
    assert not any(json.dumps(key) in text for key in control.keys)
    assert "per_sample" not in json.dumps(report.to_dict()["levels"]["encoder"]["control"])


def test_matrices_show_a_seeded_draw_of_own_samples(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    own = make_images(12)
    report = audit(before, after, own, None, matrix_size=5, seed=1, bootstrap=10)
    assert len(report.matrix_keys) == len(set(report.matrix_keys)) == 5
    assert set(report.matrix_keys) <= set(own.keys)
    assert report.matrices["encoder"]["before"].shape == (5, 5)
    assert report.matrices["encoder"]["before"].dtype == np.float32
    scores = report.levels["encoder"].per_sample
    diagonal = np.diagonal(report.matrices["encoder"]["gap"])
    np.testing.assert_allclose([scores[k] for k in report.matrix_keys], diagonal, atol=1e-6)


def test_a_large_set_is_represented_by_a_draw_where_pairs_count(
    make_images: MakeImages, before: Learner, after: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PAIR_SAMPLES", 9)
    own = make_images(20)
    report = audit(before, after, own, make_images(20, seed=1), bootstrap=20)
    level = report.levels["encoder"]
    assert level.own.negative_alignment is not None
    assert (level.own.forgetting_score.n, level.own.negative_alignment.change.n) == (20, 9)
    assert len(level.per_sample) == 20
    diagonal = np.diagonal(report.matrices["encoder"]["gap"])
    scores = [level.per_sample[key] for key in report.matrix_keys]
    assert len(scores) == 9
    np.testing.assert_allclose(scores, diagonal, atol=1e-6)


def test_encoders_of_different_specifications_are_refused(
    make_images: MakeImages, before: Learner, moco_spec: EncoderSpec
) -> None:
    with pytest.raises(ValueError, match="different specifications"):
        audit(before, build(moco_spec, seed=0), make_images(4), None)


def test_an_empty_own_set_is_refused(make_images: MakeImages, before: Learner) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        audit(before, before, make_images(4).subset([]), None)


def test_auditing_leaves_the_encoders_as_they_are(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    state = {name: tensor.clone() for name, tensor in after.state_dict().items()}
    after.train()
    audit(before, after, make_images(4), None, bootstrap=10)
    assert after.training
    assert all(torch.equal(state[name], t) for name, t in after.state_dict().items())
