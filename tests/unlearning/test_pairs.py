"""CLIP's columns against slow twins: cosines, retrieval, membership, and what a table makes of them."""

from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.unlearning import catalog
from expunge.unlearning.candidates import expand
from expunge.unlearning.catalog import EncoderSpec
from expunge.unlearning.comparison import compare
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.data.views import normalise
from expunge.unlearning.evaluation import evaluate
from expunge.unlearning.frameworks import CLIP, build
from expunge.unlearning.metrics.membership import encoder_attack
from expunge.unlearning.metrics.pairs import own_cosines, recalls
from expunge.unlearning.training import unlearn

MakeImages = Callable[..., ImageSet]
SPEC = EncoderSpec(objective=catalog.CLIP(context_length=8), image_size=16)
Pairs = tuple[Tensor, Tensor, Tensor]


def some_pairs(counts: list[int], seed: int = 0) -> Pairs:
    """Images, captions in mixed order, and which image each caption is of."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        F.normalize(torch.randn(n, 3, generator=generator), dim=1)
        for n in (len(counts), sum(counts))
    )
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return image, text, owner[torch.randperm(len(owner), generator=generator)]


def cosine(one: Tensor, other: Tensor) -> float:
    return sum(float(a) * float(b) for a, b in zip(one, other, strict=True))


COUNTS = [[1], [1, 1], [3, 1, 2], [2, 5, 1, 1, 4, 2, 3]]


@pytest.mark.parametrize("counts", COUNTS)
def test_an_images_cosine_is_the_mean_over_its_own_captions(counts: list[int]) -> None:
    image, text, owner = some_pairs(counts)
    slow = [
        mean(cosine(one, t) for t, o in zip(text, owner.tolist(), strict=True) if o == i)
        for i, one in enumerate(image)
    ]
    assert own_cosines(image, text, owner).tolist() == pytest.approx(slow, abs=1e-6)


def slow_recall(query: Tensor, answers: Tensor, right: list[bool], k: int) -> bool:
    """Whether one of the right answers is among the k nearest, wrong ones first of equal cosines."""
    ranked = sorted(
        zip(answers, right, strict=True),
        key=lambda each: (-round(cosine(query, each[0]), 6), each[1]),
    )
    return any(fits for _, fits in ranked[:k])


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_recall_equals_sorting_every_answer(counts: list[int], seed: int) -> None:
    image, text, owner = some_pairs(counts, seed)
    owners = owner.tolist()
    to_text, to_image = recalls(image, text, owner, seed=4)
    for k in (1, 5):
        texts = [slow_recall(one, text, [o == i for o in owners], k) for i, one in enumerate(image)]
        images = [
            slow_recall(one, image, [i == o for i in range(len(image))], k)
            for one, o in zip(text, owners, strict=True)
        ]
        assert to_text[f"recall@{k}"].value == pytest.approx(100 * mean(texts))
        assert to_image[f"recall@{k}"].value == pytest.approx(100 * mean(images))
        assert (to_text[f"recall@{k}"].n, to_image[f"recall@{k}"].n) == (len(image), len(text))


def test_of_equal_cosines_the_wrong_ones_count_as_nearer() -> None:
    same = F.normalize(torch.ones(6, 3), dim=1)
    to_text, to_image = recalls(same, same, torch.arange(6), seed=0)
    assert {each.value for each in (*to_text.values(), *to_image.values())} == {0.0}


@pytest.fixture(scope="module")
def learner() -> CLIP:
    built = build(SPEC, seed=0)
    assert isinstance(built, CLIP)
    return built


def captioned(images: ImageSet, context_length: int = 8) -> ImageSet:
    """One to three captions each."""
    texts = ["\n".join(f"dog {i} number {j}" for j in range(1 + i % 3)) for i in range(len(images))]
    return replace(images, captions=tokenise(texts, context_length))


@pytest.fixture
def sets(make_images: MakeImages) -> tuple[ImageSet, ImageSet, ImageSet]:
    """9 retained, 4 unlearn and 6 test samples; as subsets, whose captions share a whole table."""
    images = captioned(make_images(19))
    order = torch.randperm(19, generator=torch.Generator().manual_seed(5)).tolist()
    return images.subset(order[:9]), images.subset(order[9:13]), images.subset(order[13:])


def slow_cosines(learner: CLIP, images: ImageSet) -> list[float]:
    """Image by image and caption by caption."""
    captions, found = images.captions, []
    assert captions is not None
    learner.eval()
    with torch.no_grad():
        for i in range(len(images)):
            view = normalise(images.images[i : i + 1], SPEC.mean, SPEC.std)
            row = int(captions.first[i])
            tokens = captions.tokens[row : row + int(captions.count[i])]
            texts = [learner.text_features(each[None])[0] for each in tokens]
            found.append(mean(cosine(learner.projections(view)[0], text) for text in texts))
    return found


def test_columns_are_the_mean_cosines_of_r_and_u_times_100(
    learner: CLIP, sets: tuple[ImageSet, ImageSet, ImageSet]
) -> None:
    result = evaluate(learner, *sets, views=2, seed=3)
    slow = [slow_cosines(learner, images) for images in sets]
    assert list(result.table()) == ["cosine_retain", "cosine_unlearn"]
    assert result.pairs is not None
    for name, own in zip(("retain", "forget", "test"), slow, strict=True):
        found = result.pairs.cosine[name]
        assert (found.n, found.seed) == (len(own), 3)
        assert found.value == pytest.approx(100 * mean(own), abs=1e-3)
    for column, own in zip(("cosine_retain", "cosine_unlearn", "cosine_test"), slow, strict=True):
        outcome = result.outcomes()[column]
        assert (outcome.values * outcome.unit).tolist() == pytest.approx(
            [100 * each for each in own], abs=1e-3
        )
    place = {
        key: value
        for s, own in zip(sets, slow, strict=True)
        for key, value in zip(s.keys, own, strict=True)
    }
    members, unlearned, others = (
        torch.tensor([place[key] for key in result.scores[name].keys]).double().numpy()
        for name in ("retain", "forget", "test")
    )
    attack = encoder_attack(members, others, unlearned, seed=3)
    assert result.pairs.attack.efficacy == attack.efficacy
    assert result.pairs.attack.auc == attack.auc


def test_a_comparison_of_pairs_has_their_gaps_and_their_proxy(
    learner: CLIP, sets: tuple[ImageSet, ImageSet, ImageSet]
) -> None:
    params = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    retrain = {"epochs": 2, "batch_size": 8}
    (candidate,) = expand([{"method": "neg_grad", "params": params}], "clip")
    row = compare(learner, *sets, [candidate], retrain=retrain).rows[-1]
    encoders = [
        learner,
        unlearn(learner, *sets[:2], "neg_grad", params, seed=0).learner,
        unlearn(learner, *sets[:2], "retrain", retrain, seed=0).learner,
    ]
    (old_r, _, old_t), (r, u, t), (new_r, new_u, _) = (
        [100 * mean(slow_cosines(each, images)) for images in sets] for each in encoders
    )
    assert row.gaps["cosine_retain"].value == pytest.approx(abs(r - new_r), abs=2e-3)
    assert row.gaps["cosine_unlearn"].value == pytest.approx(abs(u - new_u), abs=2e-3)
    assert row.avg_gap.value == pytest.approx((abs(r - new_r) + abs(u - new_u)) / 2, abs=2e-3)
    proxy = (abs(u - t) + abs(r - old_r) + abs(t - old_t)) / 3
    assert row.proxy_gap.value == pytest.approx(proxy, abs=2e-3)


def test_pairs_without_captions_or_with_captions_of_another_length_are_refused(
    learner: CLIP, sets: tuple[ImageSet, ImageSet, ImageSet], make_images: MakeImages
) -> None:
    retain, forget, test = sets
    with pytest.raises(ValueError, match="not every sample has a caption"):
        evaluate(learner, retain, forget, replace(test, captions=None), views=2)
    with pytest.raises(ValueError, match="forget captions of 6 tokens, but the encoder takes 8"):
        evaluate(learner, retain, captioned(make_images(3), 6), test, views=2)
