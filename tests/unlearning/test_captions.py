"""Several captions a sample: tokens, draws, and shards that bring them."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from expunge.unlearning.catalog import CLIP, EncoderSpec
from expunge.unlearning.data.batches import StepIndices
from expunge.unlearning.data.captions import Captions, tokenise
from expunge.unlearning.data.image_set import ImageSet, load_for, load_shards
from expunge.unlearning.data.source import Source

MakeImages = Callable[..., ImageSet]
START, END = 49_406, 49_407
COUNTS = [2, 1, 5, 3]


@pytest.fixture
def captions() -> Captions:
    """Row j of sample i holds 10 i + j, four times."""
    rows = [[10 * i + j] * 4 for i, count in enumerate(COUNTS) for j in range(count)]
    count = torch.tensor(COUNTS)
    return Captions(torch.tensor(rows), count.cumsum(0) - count, count)


def every_caption(captions: Captions, sample: int) -> set[int]:
    draws = torch.arange(1000) / 1000
    drawn = captions.draw(torch.full((1000,), sample), draws)
    assert drawn.shape == (1000, captions.tokens.shape[1])
    return set(drawn[:, 0].tolist())


def test_draws_cover_a_samples_captions_and_no_others(captions: Captions) -> None:
    assert len(captions) == 4
    for sample, count in enumerate(COUNTS):
        assert every_caption(captions, sample) == {10 * sample + j for j in range(count)}


def test_each_caption_is_as_likely(captions: Captions) -> None:
    drawn = captions.draw(torch.full((5000,), 2), torch.arange(5000) / 5000)[:, 0]
    assert [int((drawn == 20 + j).sum()) for j in range(5)] == [1000] * 5


def test_the_largest_uniform_draws_the_last_caption_of_any_number() -> None:
    """A product that rounded up would draw the next sample's first."""
    count = torch.arange(1, 200)
    tokens = torch.repeat_interleave(torch.arange(199), count).unsqueeze(1)
    captions = Captions(tokens, count.cumsum(0) - count, count)
    drawn = captions.draw(torch.arange(199), torch.full((199,), 1 - 2**-24))
    assert drawn[:, 0].tolist() == list(range(199))


def test_subsets_and_concatenation_keep_captions_with_their_samples(captions: Captions) -> None:
    others = Captions(captions.tokens + 100, captions.first, captions.count).to("cpu")
    again = Captions.concat([captions.subset(torch.tensor([2, 0])), others, captions])
    assert len(again) == 10
    for place, sample in enumerate([2, 0, 0, 1, 2, 3, 0, 1, 2, 3]):
        base = 100 if 2 <= place < 6 else 0
        expected = {base + 10 * sample + j for j in range(COUNTS[sample])}
        assert every_caption(again, place) == expected


def test_image_sets_keep_captions_with_their_images(
    make_images: MakeImages, captions: Captions
) -> None:
    images = replace(make_images(4), captions=captions)
    mixed = ImageSet.concat([images.subset([3]), images.subset([1, 2]).to("cpu")])
    assert mixed.captions is not None
    assert mixed.keys == ["0-3", "0-1", "0-2"]
    assert every_caption(mixed.captions, 0) == {30, 31, 32}
    assert every_caption(mixed.captions, 1) == {10}
    assert ImageSet.concat([images, make_images(2)]).captions is None
    with pytest.raises(ValueError, match="differ in length"):
        replace(make_images(3), captions=captions)


def test_the_choice_of_a_caption_is_the_seeds_and_the_steps(
    make_images: MakeImages, captions: Captions
) -> None:
    """Two unlearn samples that show each other's captions, and their own as the third."""
    images = replace(make_images(4, size=16), captions=captions)
    spec = EncoderSpec(objective=CLIP(), image_size=16)
    indices = StepIndices(torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([1, 0]))

    def drawn(seed: int, step: int) -> tuple[list[int], list[int]]:
        source = Source(images, 2, spec, seed=seed, third_view=True)
        batch = source.batch(indices, step, 0)
        assert batch.third is not None
        assert batch.second.dtype == batch.third.dtype == torch.int64
        assert torch.equal(batch.second_ids, images.ids[[1, 3, 2]])
        return batch.second[:, 0].tolist(), batch.third[:, 0].tolist()

    assert drawn(1, 4) == drawn(1, 4)
    draws = [drawn(seed, step) for seed in range(6) for step in range(6)]
    for sample, place in ((1, 0), (3, 1), (2, 2)):
        seen = {second[place] for second, _ in draws}
        assert seen == {10 * sample + j for j in range(COUNTS[sample])}
    for sample, place in ((2, 0), (3, 1)):
        seen = {third[place] for _, third in draws}
        assert seen == {10 * sample + j for j in range(COUNTS[sample])}


def test_a_line_is_a_caption_and_blank_lines_are_none() -> None:
    captions = tokenise(["a dog\n\n  \na cat runs\n", "a tree"], 8)
    assert captions.count.tolist() == [2, 1]
    assert captions.first.tolist() == [0, 2]
    assert captions.tokens.shape == (3, 8)
    assert captions.tokens.dtype == torch.int64
    dog, cat, tree = captions.tokens.tolist()
    assert [row[0] for row in (dog, cat, tree)] == [START] * 3
    assert dog[3:] == [END, 0, 0, 0, 0]
    assert cat[4:] == [END, 0, 0, 0]
    assert dog[1] == cat[1] == tree[1]
    assert len({dog[2], cat[2], tree[2]}) == 3


def test_long_captions_are_cut_and_still_end() -> None:
    [row] = tokenise(["dog " * 50], 8).tokens.tolist()
    assert (row[0], row[-1]) == (START, END)
    assert len(set(row[1:-1])) == 1


def test_a_text_without_a_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 has no caption"):
        tokenise(["a dog", " \n "], 8)


def shard(path: Path, texts: list[str | None]) -> Path:
    files: dict[str, bytes] = {}
    for i, text in enumerate(texts):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (i, i, i)).save(buffer, "PNG")
        files[f"{i}.png"] = buffer.getvalue()
        if text is not None:
            files[f"{i}.txt"] = text.encode()
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_shards_bring_their_captions_where_the_encoder_takes_them(
    tmp_path: Path, simclr_spec: EncoderSpec
) -> None:
    path = shard(tmp_path / "0.tar", ["a dog\na café", "a tree"])
    spec = EncoderSpec(objective=CLIP(context_length=12), image_size=16)
    loaded = load_for(spec, [path]).captions
    assert loaded is not None
    assert torch.equal(loaded.tokens, tokenise(["a dog\na café", "a tree"], 12).tokens)
    assert loaded.count.tolist() == [2, 1]
    assert load_for(simclr_spec, [path]).captions is None
    assert load_shards([path], 16).captions is None


@pytest.mark.parametrize("text", [None, "", " \n "])
def test_captions_are_left_out_if_one_sample_has_none(tmp_path: Path, text: str | None) -> None:
    path = shard(tmp_path / "0.tar", ["a dog", text])
    loaded = load_shards([path], 16, context_length=8)
    assert len(loaded) == 2
    assert loaded.captions is None
