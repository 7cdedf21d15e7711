import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from expunge.evidence.audit import outputs as evidence_outputs
from expunge.evidence.audit.alignment import alignment_matrix
from expunge.unlearning.audit import audit, outputs
from expunge.unlearning.catalog import EncoderSpec, PretrainParams
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import Learner, build
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
    report = audit(before, after, own, views=3, seed=5)
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


def test_an_encoder_against_itself_is_unchanged(make_images: MakeImages, before: Learner) -> None:
    report = audit(before, before, make_images(10), retained=make_images(64, seed=1), views=2)
    assert report.verdict.code == "unchanged"
    assert (report.matrices["projector"]["gap"] == 0).all()
    assert report.test is not None
    assert report.test.p == 1


def test_images_unlike_all_that_the_model_kept_are_not_judged(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    """Own images are bright, the others dark, and the second encoder sees bright ones inverted."""
    before, after = build(simclr_spec, seed=0), build(simclr_spec, seed=0)
    with torch.no_grad():
        after.encoder.conv1.weight.neg_()
    bright, dark = make_images(30, seed=1), make_images(70, seed=2)
    bright.images.clamp_(min=200)
    dark.images.clamp_(max=50)
    report = audit(before, after, bright, retained=dark, views=4)
    assert report.verdict.code == "not_enough_evidence"
    assert "of their kind it kept fewer than 8" in report.verdict.sentence


def test_the_report_is_reproducible_and_ready_for_json(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    own, control, kept = make_images(10), make_images(12, seed=1), make_images(64, seed=2)
    one, two = (
        audit(before, after, own, retained=kept, control=control, seed=4, views=3).to_dict()
        for _ in range(2)
    )
    assert one == two
    assert json.loads(json.dumps(one, allow_nan=False)) == one


def test_a_samples_score_does_not_depend_on_the_others(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    own = make_images(12)
    whole = audit(before, after, own).levels["encoder"].per_sample
    part = audit(before, after, own.subset([7, 2]))
    for key, score in part.levels["encoder"].per_sample.items():
        assert score == pytest.approx(whole[key], abs=1e-5)


def test_nothing_of_single_samples_of_others_is_reported(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    control, kept = make_images(12, seed=1), make_images(64, seed=2)
    report = audit(before, after, make_images(10), retained=kept, control=control, views=3)
    document = report.to_dict()
    text = json.dumps(document)
    assert not any(json.dumps(key) in text for key in [*control.keys, *kept.keys])
    for group in ("control", "retained"):
        assert "per_sample" not in json.dumps(document["levels"]["encoder"][group])


def test_batches_of_a_stream_give_what_the_whole_set_gives(
    make_images: MakeImages,
    before: Learner,
    after: Learner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = make_images(20)
    whole = outputs(before, after, own, views=3)
    monkeypatch.setattr("expunge.unlearning.audit.CPU_BATCH_IMAGES", 7)
    streamed = outputs(before, after, own, views=3)
    for level, found in streamed.items():
        for mine, theirs in (
            (found.before, whole[level].before),
            (found.after, whole[level].after),
        ):
            np.testing.assert_allclose(mine.views, theirs.views, atol=1e-5)
            np.testing.assert_allclose(mine.cosines, theirs.cosines, atol=1e-5)


def test_of_a_large_set_only_a_draw_keeps_its_outputs(
    make_images: MakeImages, before: Learner, after: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_outputs, "MAX_PAIR_SAMPLES", 9)
    monkeypatch.setattr("expunge.unlearning.audit.CPU_BATCH_IMAGES", 6)
    found = outputs(before, after, make_images(20), views=3)["encoder"]
    assert found.before.views.shape[:2] == (3, 9)
    assert found.before.cosines.shape == (20, 3)


def test_encoders_of_different_specifications_are_refused(
    make_images: MakeImages, before: Learner, moco_spec: EncoderSpec
) -> None:
    with pytest.raises(ValueError, match="different specifications"):
        audit(before, build(moco_spec, seed=0), make_images(4))


def test_an_empty_own_set_is_refused(make_images: MakeImages, before: Learner) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        audit(before, before, make_images(4).subset([]))


def test_auditing_leaves_the_encoders_as_they_are(
    make_images: MakeImages, before: Learner, after: Learner
) -> None:
    state = {name: tensor.clone() for name, tensor in after.state_dict().items()}
    after.train()
    audit(before, after, make_images(4), views=2)
    assert after.training
    assert all(torch.equal(state[name], t) for name, t in after.state_dict().items())
