import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge.unlearning.catalog import (
    METHODS,
    AlignmentCalibrationParams,
    EncoderSpec,
    FineTuneParams,
    PretrainParams,
    RetrainParams,
    UnknownMethod,
    parse_params,
)
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.errors import (
    EmptySetError,
    ImageSizeError,
    NonFiniteLossError,
    NonFiniteWeightsError,
)
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.training import Progress, pretrain, unlearn

MakeImages = Callable[..., ImageSet]
SHORT = PretrainParams(epochs=2, batch_size=8)
CONTRASTIVE = sorted(m.id for m in METHODS.values() if {"simclr", "moco"} <= m.frameworks)


def state(learner: Learner) -> dict[str, Tensor]:
    return learner.state_dict()


def same(one: Learner, two: Learner) -> bool:
    pairs = zip(state(one).items(), state(two).items(), strict=True)
    return all(n == m and torch.equal(a, b) for (n, a), (m, b) in pairs)


def test_the_same_pretraining_gives_the_same_weights(
    make_images: MakeImages, spec: EncoderSpec
) -> None:
    images = make_images(20)
    one, two = (pretrain(spec, images, SHORT, seed=3).learner for _ in range(2))
    assert same(one, two)
    assert not same(one, pretrain(spec, images, SHORT, seed=4).learner)


@pytest.mark.parametrize("method", CONTRASTIVE)
def test_the_same_unlearning_gives_the_same_weights_and_leaves_the_learner_alone(
    make_images: MakeImages, spec: EncoderSpec, method: str
) -> None:
    learner = pretrain(spec, make_images(20), SHORT, seed=0).learner
    before = copy.deepcopy(learner)
    params = parse_params(method, spec.framework, {"epochs": 2, "batch_size": 8})
    results = []
    for _ in range(2):
        torch.rand(3)  # The global generator's state must not matter.
        run = unlearn(learner, make_images(16), make_images(4, seed=1), method, params, seed=5)
        results.append(run.learner)
    assert same(*results)
    assert same(learner, before)
    assert not same(learner, results[0])


def test_training_leaves_the_global_generator_alone(
    make_images: MakeImages, moco_spec: EncoderSpec
) -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    pretrain(moco_spec, make_images(8), SHORT, seed=9)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("method", CONTRASTIVE)
@pytest.mark.parametrize("unlearn_size", [1, 3])
def test_small_unlearn_sets_are_trained_on(
    make_images: MakeImages, spec: EncoderSpec, method: str, unlearn_size: int
) -> None:
    if (method, spec.framework, unlearn_size) == ("gradient_ascent", "simclr", 1):
        return  # Refused: see test_gradient_ascent.
    learner = build(spec, seed=0)
    params = parse_params(method, spec.framework, {"epochs": 2, "batch_size": 8})
    forget = make_images(unlearn_size, seed=1)
    result = unlearn(learner, make_images(30), forget, method, params, seed=0)
    assert result.steps > 0
    assert len(result.history) == 2
    assert all(v.isfinite().all() for v in state(result.learner).values())


def test_a_single_unlearn_sample_is_pushed_apart_from_itself(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    learner = pretrain(simclr_spec, make_images(16), SHORT, seed=0).learner
    params = AlignmentCalibrationParams(
        epochs=20, batch_size=8, beta=100, learning_rate=0.02, alpha=0, gamma=0
    )
    run = unlearn(
        learner, make_images(15), make_images(1, seed=1), "alignment_calibration", params, seed=0
    )
    first, last = run.history[0], run.history[-1]
    assert last["positive_calibration"] < first["positive_calibration"] - 0.1
    assert last["negative_calibration"] == 0


def test_retraining_uses_nothing_of_the_given_weights(
    make_images: MakeImages, spec: EncoderSpec
) -> None:
    params = RetrainParams(epochs=2, batch_size=8)
    retain, forget = make_images(16), make_images(4, seed=1)
    runs = [
        unlearn(build(spec, seed=seed), retain, forget, "retrain", params, seed=7)
        for seed in (0, 1)
    ]
    assert same(runs[0].learner, runs[1].learner)
    plain = pretrain(spec, retain, PretrainParams(epochs=2, batch_size=8), seed=7)
    assert same(runs[0].learner, plain.learner)


def test_fine_tuning_never_sees_an_unlearn_sample(
    make_images: MakeImages, spec: EncoderSpec
) -> None:
    params = FineTuneParams(epochs=1, batch_size=8)
    learner = build(spec, seed=0)
    runs = [
        unlearn(learner, make_images(16), make_images(4, seed=s), "fine_tune", params, seed=0)
        for s in (1, 2)
    ]
    assert same(runs[0].learner, runs[1].learner)


def test_a_queue_holds_no_unlearn_sample_during_fine_tuning_nor_after_any_method(
    make_images: MakeImages,
    moco_spec: EncoderSpec,
) -> None:
    images = make_images(20)
    learner = pretrain(moco_spec, images, SHORT, seed=0).learner
    retain, forget = images.subset(range(12)), images.subset(range(12, 20))
    assert torch.isin(learner.queue_ids, forget.ids).any()
    for method in CONTRASTIVE:
        params = parse_params(method, "moco", {"epochs": 1, "batch_size": 8})
        after = unlearn(learner, retain, forget, method, params, seed=0).learner
        assert not torch.isin(after.queue_ids, forget.ids).any()
        empty = after.queue_ids == -1
        assert (after.queue[empty] == 0).all()
        assert (after.queue_ids != -1).any()


def test_a_loss_that_is_not_finite_stops_with_its_reason(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    learner = build(simclr_spec, seed=0)
    with torch.no_grad():
        next(learner.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"not finite in epoch 1 \(loss = nan"):
        unlearn(
            learner, make_images(8), make_images(2, seed=1), "fine_tune", FineTuneParams(), seed=0
        )


def test_weights_that_the_last_step_ruined_are_refused(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    """Every loss was finite: each is that of the weights before its step."""
    params = {"epochs": 2, "learning_rate": 10.0, "weight_decay": 1.0, "batch_size": 4}
    with pytest.raises(NonFiniteWeightsError, match=r"running_var first\)"):
        pretrain(simclr_spec, make_images(20), params | {"schedule": "constant"}, seed=0)


@pytest.mark.parametrize(("retain", "forget", "name"), [(0, 4, "retain"), (4, 0, "unlearn")])
def test_an_empty_set_is_refused_by_name(
    make_images: MakeImages, simclr_spec: EncoderSpec, retain: int, forget: int, name: str
) -> None:
    some = make_images(4)
    with pytest.raises(EmptySetError, match=f"the {name} set is empty"):
        unlearn(
            build(simclr_spec, seed=0),
            some.subset(range(retain)),
            some.subset(range(forget)),
            "fine_tune",
            FineTuneParams(),
            seed=0,
        )


def test_images_of_another_size_are_refused(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    with pytest.raises(ImageSizeError, match="32 pixels, but the encoder takes 16"):
        pretrain(simclr_spec, make_images(4, size=32), SHORT, seed=0)


@pytest.mark.parametrize("method", ["gradient_ascent", "fine_tune"])
def test_no_set_of_another_size_is_taken_though_the_method_does_not_train_on_it(
    make_images: MakeImages, moco_spec: EncoderSpec, method: str
) -> None:
    learner, fits, large = build(moco_spec, seed=0), make_images(4), make_images(4, size=32)
    for retain, forget in ((fits, large), (large, fits)):
        with pytest.raises(ImageSizeError, match="32 pixels, but the encoder takes 16"):
            unlearn(learner, retain, forget, method, {"epochs": 1}, seed=0)


def test_an_unknown_method_is_refused(make_images: MakeImages, simclr_spec: EncoderSpec) -> None:
    some = make_images(4)
    with pytest.raises(UnknownMethod):
        unlearn(build(simclr_spec, seed=0), some, some, "amnesia", FineTuneParams(), seed=0)


def test_progress_tells_phase_steps_and_losses_and_ends_complete(
    make_images: MakeImages,
    simclr_spec: EncoderSpec,
) -> None:
    seen: list[Progress] = []
    result = pretrain(simclr_spec, make_images(20), SHORT, seed=0, on_progress=seen.append)
    last = seen[-1]
    assert (last.phase, last.epoch, last.epochs) == ("pretrain", 2, 2)
    assert last.step == last.steps == result.steps == 4
    assert last.eta_seconds == 0
    assert last.losses == result.history[-1]
    assert all(a.step <= b.step for a, b in itertools.pairwise(seen))


def test_a_progress_callback_can_stop_the_run(
    make_images: MakeImages, simclr_spec: EncoderSpec
) -> None:
    class CancelledError(Exception):
        pass

    def cancel(progress: Progress) -> None:
        raise CancelledError(progress.phase)

    with pytest.raises(CancelledError, match="pretrain"):
        pretrain(simclr_spec, make_images(8), SHORT, seed=0, on_progress=cancel)


def test_training_learns(make_images: MakeImages, spec: EncoderSpec) -> None:
    params = PretrainParams(epochs=30, batch_size=16)
    history = pretrain(spec, make_images(32), params, seed=0).history
    early = history[2]["loss"]  # MoCo's loss starts at zero, with an empty queue.
    assert history[-1]["loss"] < early
