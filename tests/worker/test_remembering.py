"""What encoders said about samples is asked of them once: by sample, pair, owner and caption."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.worker.lab import ENCODER, SMALLEST_CLIP

from expunge.evidence.audit import Level, Outputs
from expunge.formats.shards import SampleRecord
from expunge.registry.subsets import Chosen
from expunge.registry.tables import Dataset
from expunge.unlearning.audit import CPU_BATCH_IMAGES, stream_outputs
from expunge.unlearning.catalog import CLIP, EncoderSpec
from expunge.unlearning.data.captions import tokenise
from expunge.unlearning.data.image_set import ImageSet, sample_id
from expunge.unlearning.data.views import Views
from expunge.unlearning.frameworks import Learner, build
from expunge.worker.remembering import Remembered

COUNT = CPU_BATCH_IMAGES + 8
VIEWS = 3


class Asked:
    """Two encoders that are asked about an owner's samples through a memory."""

    def __init__(self, memory: Remembered, spec: EncoderSpec = ENCODER) -> None:
        self.memory = memory
        self.spec = spec
        self.learners: list[Learner] = [build(spec, seed=seed).eval() for seed in (1, 2)]
        self.encoded = 0

    def about(
        self, chosen: Sequence[Chosen], pair: str = "pair", *, captions: bool = False
    ) -> dict[Level, Outputs]:
        """The outputs; counts the views that encoders were run on."""
        views = Views(self.spec.image_size, self.spec.mean, self.spec.std, seed=0)

        def make(images: torch.Tensor, ids: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
            self.encoded += len(images) * len(numbers)
            return views.several(images, ids, numbers)

        return stream_outputs(
            self.learners[0],
            self.learners[1],
            [image_set(chosen, self.spec, captions=captions)],
            len(chosen),
            views=VIEWS,
            device="cpu",
            make=make,
            memory=self.memory.about(chosen, pair, captions=captions),
        )


def samples(count: int = COUNT, owner: str = "one", caption: str | None = None) -> list[Chosen]:
    dataset = Dataset(id="dst_a", owner_id=owner)
    records = [
        SampleRecord(f"k{number}", "s", "png", 0, 1, f"{number:064x}", 1, 1, None, caption)
        for number in range(count)
    ]
    return [Chosen(dataset, record, record.key) for record in records]


def image_set(chosen: Sequence[Chosen], spec: EncoderSpec, *, captions: bool) -> ImageSet:
    """An image of its own for each digest."""
    size = spec.image_size
    pixels = [
        np.random.default_rng(int(each.sha256, 16)).integers(0, 256, (3, size, size), np.uint8)
        for each in chosen
    ]
    texts = [each.record.caption or "" for each in chosen]
    length = spec.objective.context_length if isinstance(spec.objective, CLIP) else 0
    return ImageSet(
        torch.from_numpy(np.stack(pixels)),
        torch.tensor([sample_id(each.sha256[::-1]) for each in chosen]),
        [each.name for each in chosen],
        captions=tokenise(texts, length) if captions else None,
    )


def assert_same(first: dict[Level, Outputs], second: dict[Level, Outputs]) -> None:
    assert first.keys() == second.keys()
    for level, outputs in first.items():
        for mine, theirs in (
            (outputs.before, second[level].before),
            (outputs.after, second[level].after),
        ):
            np.testing.assert_array_equal(mine.views, theirs.views)
            np.testing.assert_array_equal(mine.cosines, theirs.cosines)
            np.testing.assert_array_equal(mine.captions, theirs.captions)


def test_encoders_answer_once_and_the_numbers_are_the_same() -> None:
    asked, chosen = Asked(Remembered()), samples()
    first = asked.about(chosen)
    assert asked.encoded == COUNT * VIEWS
    assert_same(asked.about(chosen), first)
    assert asked.encoded == COUNT * VIEWS
    assert not np.array_equal(first["encoder"].before.views, first["encoder"].after.views)


def test_another_draw_takes_each_samples_own_answers() -> None:
    asked, chosen = Asked(Remembered()), samples()
    whole = asked.about(chosen)
    places = [30, 2, 35, 7]
    part = asked.about([chosen[place] for place in places])
    assert asked.encoded == COUNT * VIEWS
    for level, outputs in part.items():
        expected = whole[level]
        np.testing.assert_array_equal(outputs.before.views, expected.before.views[:, places])
        np.testing.assert_array_equal(outputs.after.views, expected.after.views[:, places])
        np.testing.assert_array_equal(outputs.scores, expected.scores[places])


@pytest.mark.parametrize(
    ("spec", "count"), [(ENCODER, 1), (ENCODER, 3), (ENCODER, 8), (SMALLEST_CLIP, 1)]
)
def test_what_is_remembered_is_what_the_encoders_would_say_again(
    spec: EncoderSpec, count: int
) -> None:
    pairs = spec is SMALLEST_CLIP
    asked, chosen = Asked(Remembered(), spec), samples(20, caption="a dog" if pairs else None)
    asked.about(chosen, captions=pairs)
    part = chosen[5 : 5 + count]
    remembered = asked.about(part, captions=pairs)
    assert asked.encoded == 20 * VIEWS
    assert_same(Asked(Remembered(), spec).about(part, captions=pairs), remembered)


def test_a_batch_with_one_unknown_sample_is_encoded() -> None:
    asked, chosen = Asked(Remembered()), samples()
    asked.about(chosen[:4])
    asked.about(chosen[:5])
    assert asked.encoded == (4 + 5) * VIEWS


@pytest.mark.parametrize("other", ["pair", "owner"])
def test_what_others_asked_is_not_known(other: str) -> None:
    asked, chosen = Asked(Remembered()), samples(4)
    asked.about(chosen)
    if other == "pair":
        asked.about(chosen, "another pair")
    else:
        asked.about(samples(4, owner="another"))
    assert asked.encoded == 2 * 4 * VIEWS


def test_images_against_other_captions_are_encoded_again() -> None:
    asked = Asked(Remembered(), SMALLEST_CLIP)
    first = asked.about(samples(4, caption="a dog"), captions=True)
    assert_same(asked.about(samples(4, caption="a dog"), captions=True), first)
    assert asked.encoded == 4 * VIEWS
    assert "image_text" in first
    other = asked.about(samples(4, caption="a red boat"), captions=True)
    assert asked.encoded == 2 * 4 * VIEWS
    assert not np.array_equal(other["image_text"].scores, first["image_text"].scores)
    assert "image_text" not in asked.about(samples(4, caption="a dog"))


def test_the_memory_is_bounded_and_what_does_not_fit_is_computed() -> None:
    known = Asked(Remembered())
    chosen = samples()
    expected = known.about(chosen)
    levels = (expected["encoder"].before.views, expected["projector"].before.views)
    of_one = sum(2 * array.nbytes // COUNT for array in levels)
    asked = Asked(Remembered(limit=8 * of_one))
    assert_same(asked.about(chosen), expected)
    asked.about(chosen[-8:])
    assert asked.encoded == COUNT * VIEWS
    asked.about(chosen[:8])
    assert asked.encoded == (COUNT + 8) * VIEWS
