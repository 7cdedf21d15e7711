"""CLIP: its objective against slow twins and open_clip's, methods on pairs, files and snapshots."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from expunge.formats.tensors import write_release
from expunge.unlearning import catalog, checkpoints
from expunge.unlearning import progress as progress_module
from expunge.unlearning.audit import audit
from expunge.unlearning.catalog import AlignmentCalibrationParams, EncoderSpec, OpenClip
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import Views
from expunge.unlearning.errors import CaptionError, NoNegativesError, SnapshotMismatch
from expunge.unlearning.frameworks import CLIP, Contrast, build
from expunge.unlearning.frameworks.clip import pair_terms
from expunge.unlearning.methods.alignment_calibration import calibration_losses
from expunge.unlearning.methods.base import SetSizes
from expunge.unlearning.optimisation import make_optimiser
from expunge.unlearning.progress import Progress
from expunge.unlearning.training import Snapshots, pretrain, unlearn

MakeImages = Callable[..., ImageSet]
SPEC = EncoderSpec(objective=catalog.CLIP(context_length=8), image_size=16)
SCALE = 9.0
"""1/T where any will do."""
COLOURS = ("red", "green", "blue", "black", "white", "grey", "brown", "pink")


@pytest.fixture(scope="module")
def learner() -> Iterator[CLIP]:
    """Fresh, in eval mode; tests leave it as it is."""
    built = build(SPEC, seed=0).eval()
    assert isinstance(built, CLIP)
    before = float(built.state_dict()["text_encoder.text_projection"].sum())
    yield built
    assert float(built.state_dict()["text_encoder.text_projection"].sum()) == before


def captioned(images: ImageSet) -> ImageSet:
    texts = [f"a {COLOURS[i % 8]} dog {i}\na picture of {i}" for i in range(len(images))]
    return replace(images, captions=tokenise(texts, 8))


def unit_rows(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def scale_of(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def slow_terms(image: Tensor, text: Tensor, scale: float) -> tuple[list[list[float]], ...]:
    """One pair at a time: images over all texts, then texts over all images."""
    alignment: list[list[float]] = [[], []]
    partition: list[list[float]] = [[], []]
    for row, (anchors, others) in enumerate([(image, text), (text, image)]):
        for anchor, own in zip(anchors, others, strict=True):
            alignment[row].append(scale * dot(anchor, own))
            total = sum(math.exp(scale * dot(anchor, other)) for other in others)
            partition[row].append(math.log(total))
    return alignment, partition


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("dim", [2, 8])
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_pair_terms_equal_the_slow_twin(batch: int, dim: int, scale: float) -> None:
    image, text = unit_rows(batch, dim, 1), unit_rows(batch, dim, 2)
    fast = pair_terms(image, text, scale_of(scale))
    for ours, slow in zip(fast, slow_terms(image, text, scale), strict=True):
        assert ours.shape == (2, batch)
        torch.testing.assert_close(ours, torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_the_mean_loss_equals_open_clips(batch: int) -> None:
    image, text = unit_rows(batch, 8, 3), unit_rows(batch, 8, 4)
    ours = Contrast(*pair_terms(image, text, scale_of(20))).mean_loss()
    torch.testing.assert_close(ours, ClipLoss()(image, text, scale_of(20)))


def test_gradients_of_images_texts_and_scale_equal_finite_differences() -> None:
    def losses(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
        terms = pair_terms(F.normalize(image, dim=1), F.normalize(text, dim=1), log_scale.exp())
        return Contrast(*terms).sample_losses()

    inputs = (2 * unit_rows(3, 4, 5), unit_rows(3, 4, 6), scale_of(0.7))
    assert torch.autograd.gradcheck(losses, tuple(each.requires_grad_() for each in inputs))


def slow_calibration(
    image: Tensor, swapped: Tensor, own: Tensor, sizes: SetSizes, params: AlignmentCalibrationParams
) -> float:
    """Eqs. 3-5 on pairs: an unlearn image's positive is the caption of another unlearn image."""
    alignment, partition = slow_terms(image, swapped, SCALE)
    batch, retain = len(image), len(image) - len(own)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    kept, forgotten = range(retain), range(retain, batch)
    rows = range(2)
    l_retain = mean([partition[r][i] - alignment[r][i] for r in rows for i in kept])
    negative = -mean([alignment[r][i] for r in rows for i in forgotten])
    if sizes.unlearn == 1:
        negative = 0.0
    preserving = mean([partition[r][i] for r in rows for i in forgotten])
    positive = mean([dot(image[retain + i], own[i]) for i in range(batch - retain)])
    eps = sizes.unlearn / sizes.retain
    l_unlearn = params.alpha * negative + params.beta * positive + params.gamma * preserving
    return (l_retain + eps * l_unlearn) / (1 + eps)


@pytest.mark.parametrize("retain", [1, 5])
@pytest.mark.parametrize("unlearn_size", [1, 2, 4])
@pytest.mark.parametrize("weights", [(1, 0, 1), (0.5, 0.8, 0.5), (2, 1, 0)])
def test_alignment_calibration_equals_the_slow_twin(
    retain: int, unlearn_size: int, weights: tuple[float, float, float]
) -> None:
    batch = retain + unlearn_size
    image, swapped, own = unit_rows(batch, 6, 1), unit_rows(batch, 6, 2), unit_rows(batch, 6, 3)
    own = own[retain:]
    alpha, beta, gamma = weights
    params = AlignmentCalibrationParams(alpha=alpha, beta=beta, gamma=gamma)
    sizes = SetSizes(retain=30, unlearn=unlearn_size)
    third = (image[retain:] * own).sum(1)
    contrast = Contrast(*pair_terms(image, swapped, scale_of(SCALE)), third)
    ours = calibration_losses(contrast, retain, sizes, params)["loss"]
    slow = slow_calibration(image, swapped, own, sizes, params)
    assert float(ours) == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_equal_weights_reduce_to_the_released_loss_on_swapped_captions(alpha: float) -> None:
    """InfoNCE with row weights 1 and alpha over their sum, plus beta |U|/|D| of the plain cosine."""
    image, swapped, own = unit_rows(8, 6, 1), unit_rows(8, 6, 2), unit_rows(2, 6, 3)
    third = (image[6:] * own).sum(1)
    contrast = Contrast(*pair_terms(image, swapped, scale_of(SCALE)), third)
    params = AlignmentCalibrationParams(alpha=alpha, gamma=alpha, beta=0.7, protocol="released")
    ours = calibration_losses(contrast, 6, SetSizes(60, 20), params)["loss"]
    alignment, partition = slow_terms(image, swapped, SCALE)
    total = sum(
        (1 if i < 6 else alpha) * (partition[r][i] - alignment[r][i])
        for r in range(2)
        for i in range(8)
    )
    expected = total / (2 * (6 + alpha * 2)) + 0.7 * 0.25 * float(third.mean())
    assert float(ours) == pytest.approx(expected, rel=1e-12)


@torch.no_grad()
def test_a_batch_is_contrasted_with_its_captions(learner: CLIP) -> None:
    """The third texts give plain cosines of the last images with their own captions."""
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = tokenise([f"a {colour} dog" for colour in COLOURS[:6]], 8).tokens
    contrast = learner.contrast(x, tokens[:4], torch.arange(4), tokens[4:])
    image = torch.cat([learner.projections(x[i : i + 1]) for i in range(4)])
    text = torch.cat([learner.text_features(tokens[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(image.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(6))
    scale = float(learner.log_scale.exp())
    assert scale == pytest.approx(1 / 0.07)
    alignment, partition = slow_terms(image, text[:4], scale)
    torch.testing.assert_close(contrast.alignment, torch.tensor(alignment), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        contrast.log_partition, torch.tensor(partition), rtol=1e-4, atol=1e-4
    )
    assert contrast.third is not None
    expected = torch.tensor([dot(image[2], text[4]), dot(image[3], text[5])])
    torch.testing.assert_close(contrast.third, expected, rtol=1e-4, atol=1e-5)


def test_the_learned_temperature_stays_at_a_hundredth_or_above() -> None:
    built = build(SPEC, seed=0)
    assert isinstance(built, CLIP)
    with torch.no_grad():
        built.log_scale.fill_(9)
    built.advance(0.5)
    assert float(built.log_scale.exp().detach()) == pytest.approx(100)


def test_adamw_never_decays_the_temperature(learner: CLIP) -> None:
    params = AlignmentCalibrationParams(optimiser="adamw", weight_decay=0.2)
    groups = make_optimiser(learner, params).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(learner.parameters()))
    assert decay[id(learner.log_scale)] == 0
    assert decay[id(learner.get_parameter("text_encoder.token_embedding.weight"))] == 0.2


def test_weights_depend_on_the_seed_alone(learner: CLIP) -> None:
    torch.rand(3)
    again, other = build(SPEC, seed=0).state_dict(), build(SPEC, seed=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in learner.state_dict().items())
    assert not torch.equal(other["encoder.conv1.weight"], again["encoder.conv1.weight"])


def test_towers_are_built_by_the_name_of_an_open_clip_configuration() -> None:
    spec = EncoderSpec(
        objective=catalog.CLIP(context_length=16),
        architecture=OpenClip(model="ViT-S-32-alt"),
        image_size=64,
    )
    with torch.device("meta"):
        named = build(spec, seed=0)
    assert isinstance(named, CLIP)
    tokens = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    images = torch.zeros(2, 3, 64, 64, device="meta")
    assert named.features(images).shape == named.text_features(tokens).shape == (2, 256)


@pytest.mark.parametrize(
    ("model", "size", "patch"),
    [("expunge-small", 30, 8), ("ViT-B-32", 48, 32), ("ViT-B-32", 16, 32), ("RN50", 40, 32)],
)
def test_images_that_are_no_whole_number_of_patches_are_refused(
    model: str, size: int, patch: int
) -> None:
    """The tower would cut their right and lower edge away without a word."""
    with pytest.raises(ValidationError, match=f"{model} takes images in patches of {patch} pixels"):
        EncoderSpec(objective=catalog.CLIP(), architecture=OpenClip(model=model), image_size=size)


def test_a_checkpoint_keeps_everything_and_a_release_both_towers(
    learner: CLIP, tmp_path: Path
) -> None:
    whole, released = tmp_path / "whole", tmp_path / "released"
    checkpoints.save(learner, whole)
    loaded = checkpoints.load(whole)
    assert loaded.spec == SPEC
    state = loaded.state_dict()
    assert state.keys() == learner.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in learner.state_dict().items())
    write_release(whole, released)
    assert load_file(released).keys() == state.keys()
    assert {name.split(".")[0] for name in state} == {"encoder", "text_encoder", "log_scale"}


@pytest.fixture
def pairs(make_images: MakeImages) -> ImageSet:
    return captioned(make_images(12))


def test_an_audit_holds_images_against_their_own_captions(
    make_images: MakeImages, learner: CLIP
) -> None:
    """The mean over views and over a sample's captions of the cosine, one pair at a time."""
    images = captioned(make_images(3, size=16))
    report = audit(learner, learner, images, views=2, seed=4)
    assert images.captions is not None
    tokens = images.captions.tokens
    make = Views(16, SPEC.mean, SPEC.std, seed=4)
    with torch.no_grad():
        texts = learner.text_features(tokens)
        made = [learner.projections(make(images.images, images.ids, view)) for view in range(2)]
    for i in range(3):
        for j in range(3):
            own = [2 * j, 2 * j + 1]
            cosines = [dot(view[i], texts[text]) for view in made for text in own]
            found = report.matrices["image_text"]["before"][i, j]
            assert found == pytest.approx(sum(cosines) / 4, abs=1e-5)
    assert set(audit(learner, learner, make_images(3, size=16), views=2).levels) == {"encoder"}


def test_samples_without_captions_are_refused(
    make_images: MakeImages, pairs: ImageSet, learner: CLIP
) -> None:
    with pytest.raises(CaptionError, match="not every sample has one"):
        pretrain(SPEC, make_images(8), {"epochs": 1}, seed=0)
    with pytest.raises(CaptionError):
        unlearn(learner, pairs, make_images(2, seed=1), "neg_grad", {"epochs": 1}, seed=0)


def test_gradient_ascent_on_a_single_pair_is_refused(pairs: ImageSet, learner: CLIP) -> None:
    retain, forget = pairs.subset(range(11)), pairs.subset([11])
    with pytest.raises(NoNegativesError):
        unlearn(learner, retain, forget, "gradient_ascent", {"epochs": 1}, seed=0)


def test_alignment_calibration_forgets_a_single_pair(pairs: ImageSet, learner: CLIP) -> None:
    retain, forget = pairs.subset(range(11)), pairs.subset([11])
    params = {"epochs": 4, "batch_size": 6, "beta": 50, "learning_rate": 1e-3}
    run = unlearn(learner, retain, forget, "alignment_calibration", params, seed=0)
    cosines = [epoch["positive_calibration"] for epoch in run.history]
    assert cosines[-1] < cosines[0] - 0.05
    assert all(epoch["negative_calibration"] == 0 for epoch in run.history)


class Stopped(Exception):
    """Raised by a callback, as a cancelled job would."""


def test_a_stopped_run_resumes_bit_for_bit(
    pairs: ImageSet, learner: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alignment Calibration with AdamW: two epochs of two steps, stopped within the second."""
    monkeypatch.setattr(progress_module, "REPORT_SECONDS", 0.0)
    snapshots = Snapshots(tmp_path / "run.snapshot", every_seconds=1e9)
    retain, forget = pairs.subset(range(8)), pairs.subset(range(8, 12))

    def run(
        stop: int | None = None,
        kept: Snapshots | None = snapshots,
        forget: ImageSet = forget,
    ) -> CLIP:
        def report(progress: Progress) -> None:
            if progress.step == stop:
                raise Stopped

        params = {"epochs": 2, "batch_size": 6}
        method = "alignment_calibration"
        result = unlearn(
            learner, retain, forget, method, params, seed=0, on_progress=report, snapshots=kept
        )
        assert isinstance(result.learner, CLIP)
        return result.learner

    whole = run(kept=None).state_dict()
    with pytest.raises(Stopped):
        run(3)
    resumed = run().state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not snapshots.path.exists()
    other = replace(forget, captions=captioned(retain).subset(range(4)).captions)
    with pytest.raises(Stopped):
        run(1)
    with pytest.raises(SnapshotMismatch, match="it is of another run"):
        run(forget=other)


def test_training_learns_which_caption_goes_with_which_image(pairs: ImageSet) -> None:
    params = {"epochs": 30, "batch_size": 12, "learning_rate": 1e-3}
    history = pretrain(SPEC, pairs, params, seed=0).history
    assert history[-1]["loss"] < math.log(12) - 0.5
