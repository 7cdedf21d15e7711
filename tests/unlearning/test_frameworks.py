import pytest
import torch
from torch import nn

from expunge.unlearning.catalog import Architecture, EncoderSpec, MoCo, SimCLR
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.frameworks.architectures import SplitBatchNorm2d
from expunge.unlearning.frameworks.moco import EMPTY


def views(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("architecture", "features"),
    [
        (Architecture(width=4), 32),
        (Architecture(), 512),
        (Architecture(name="resnet18"), 512),
        (Architecture(name="resnet50"), 2048),
    ],
)
def test_encoders_give_their_architectures_features(
    architecture: Architecture, features: int
) -> None:
    learner = build(EncoderSpec(objective=SimCLR(), architecture=architecture), seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    assert learner.features(x).shape == (2, features)
    norms = learner.projections(x).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2))


def test_full_width_cifar_resnet18_has_the_published_size() -> None:
    """11.17 million weights, as the usual CIFAR variant without its classifier."""
    encoder = build(EncoderSpec(objective=SimCLR()), seed=0).encoder
    assert sum(p.numel() for p in encoder.parameters()) == 11_168_832


def test_weights_depend_on_the_seed_alone(spec: EncoderSpec) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([p.flatten() for p in build(spec, seed=seed).parameters()])

    first = weights(1)
    torch.rand(5)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_third_views_are_encoded_for_the_last_samples_only(spec: EncoderSpec) -> None:
    learner = build(spec, seed=0).eval()
    first, second, third = views(6, 1), views(6, 2), views(2, 3)
    contrast = learner.contrast(first, second, torch.arange(6), third)
    assert contrast.third is not None
    anchors = learner.projections(first)[4:]
    expected = (anchors * learner.projections(third)).sum(1)
    torch.testing.assert_close(contrast.third, expected)


def filled_moco(spec: EncoderSpec) -> Learner:
    learner = build(spec, seed=0).train()
    learner.contrast(views(20), views(20, 1), torch.arange(100, 120))
    return learner


def test_keys_enter_the_queue_with_their_samples_ids(moco_spec: EncoderSpec) -> None:
    learner = filled_moco(moco_spec)
    assert learner.queue_ids.tolist() == [*range(100, 120), EMPTY, EMPTY, EMPTY, EMPTY]
    learner.contrast(views(6), views(6, 1), torch.arange(6))
    assert learner.queue_ids.tolist() == [4, 5, *range(102, 120), 0, 1, 2, 3]
    assert int(learner.queue_pointer) == 2


def test_a_batch_larger_than_the_queue_leaves_its_last_keys(moco_spec: EncoderSpec) -> None:
    learner = build(moco_spec, seed=0).train()
    learner.contrast(views(30), views(30, 1), torch.arange(30))
    assert sorted(learner.queue_ids.tolist()) == list(range(6, 30))


def test_purged_samples_never_act_as_negatives(moco_spec: EncoderSpec) -> None:
    learner = filled_moco(moco_spec).eval()
    first, second, ids = views(4, 5), views(4, 6), torch.arange(4)
    forgotten = torch.arange(105, 115)
    kept = ~torch.isin(learner.queue_ids, forgotten) & (learner.queue_ids != EMPTY)
    query = learner.projections(first)
    key = nn.functional.normalize(learner.key_projector(learner.key_encoder(second)), dim=1)
    assert isinstance(learner.spec.objective, MoCo)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ learner.queue[kept].T], dim=1)
    expected = (logits / learner.spec.objective.temperature).logsumexp(1)
    assert learner.purge(forgotten) == 10
    assert learner.purge(forgotten) == 0
    assert not torch.isin(learner.queue_ids, forgotten).any()
    assert (learner.queue[~kept] == 0).all()
    terms = learner.contrast(first, second, ids)
    torch.testing.assert_close(terms.log_partition[0], expected)


def test_purging_the_id_of_an_empty_slot_finds_nothing(moco_spec: EncoderSpec) -> None:
    assert build(moco_spec, seed=0).purge(torch.tensor([EMPTY])) == 0


def test_the_key_encoder_follows_the_query_encoder_by_its_momentum(
    moco_spec: EncoderSpec,
) -> None:
    learner = build(moco_spec, seed=0)
    with torch.no_grad():
        for parameter in learner.projector.parameters():
            parameter.add_(1)
    before = learner.key_projector.weight.clone()
    learner.advance(0.0)
    torch.testing.assert_close(learner.key_projector.weight, before + 0.01)


def test_no_gradient_reaches_the_keys(moco_spec: EncoderSpec) -> None:
    learner = build(moco_spec, seed=0).train()
    contrast = learner.contrast(views(4), views(4, 1), torch.arange(4), views(2, 2))
    assert contrast.third is not None
    (contrast.mean_loss() + contrast.third.mean()).backward()
    assert all(p.grad is None for p in learner.key_encoder.parameters())
    assert all(p.grad is not None for p in learner.encoder.parameters())


def test_split_batch_norm_normalises_each_group_by_itself() -> None:
    split, plain = SplitBatchNorm2d(3, 4), nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 5, 5)
    out = split(x)
    means, variances = [], []
    for group in range(4):
        # A reshape puts every fourth sample into one group.
        torch.testing.assert_close(out[group::4], plain(x[group::4]))
        means.append(x[group::4].mean((0, 2, 3)))
        variances.append(x[group::4].var((0, 2, 3)))
    torch.testing.assert_close(split.running_mean, 0.1 * torch.stack(means).mean(0))
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))


def test_split_batch_norm_in_eval_mode_is_plain_batch_norm() -> None:
    split = SplitBatchNorm2d(3, 4).eval()
    x = torch.randn(6, 3, 5, 5)
    torch.testing.assert_close(split(x), nn.BatchNorm2d(3).eval()(x))


def test_shuffled_keys_come_back_in_order() -> None:
    spec = EncoderSpec(
        objective=MoCo(projector_dim=8, queue_size=8, bn_splits=2),
        architecture=Architecture(width=4),
        image_size=16,
    )
    learner = build(spec, seed=0).eval()
    learner.contrast(views(6), views(6, 1), torch.arange(6))
    torch.testing.assert_close(learner.queue[:6], learner.projections(views(6, 1)))
