"""A spot check agrees with honest outputs, and with no others."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from expunge.cli import app
from expunge.evidence.audit import Level, Outputs
from expunge.evidence.encoding import BadEncoding, Encoded, Inputs, Weights, pack, statement
from expunge.formats.digests import sha256_file
from expunge.formats.home_views import View, write_views
from expunge.formats.shards import Sample, make_sample, write_shard
from expunge.formats.tensors import write_release
from expunge.unlearning.audit import outputs, stream_outputs
from expunge.unlearning.catalog import Architecture, EncoderSpec, MoCo, SimCLR
from expunge.unlearning.checkpoints import CheckpointMismatch, load, save
from expunge.unlearning.data.image_set import ImageSet, load_for
from expunge.unlearning.data.views import GivenViews
from expunge.unlearning.frameworks import build
from expunge.unlearning.spot_check import spot_check

VIEWS, SEED = 3, 9
ARCHITECTURE = Architecture(width=4)
MOCO = EncoderSpec(
    objective=MoCo(projector_dim=8, queue_size=16),
    architecture=ARCHITECTURE,
    image_size=16,
)
SIMCLR = EncoderSpec(
    objective=SimCLR(projector_hidden=16, projector_dim=8),
    architecture=ARCHITECTURE,
    image_size=16,
)


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def samples(count: int) -> list[Sample]:
    return [
        make_sample(f"s{number}", "png", picture(number), caption=f"number {number}")
        for number in range(count)
    ]


@dataclass
class Answer:
    """An encoding with its statement and the files that it was made from."""

    encoded: Encoded
    statement: dict[str, Any]
    before: Path
    after: Path
    shard: Path
    views: Path

    def check(self, checkpoint: Path, **options: Any) -> Any:
        given = {"samples": 3, "seed": 1} | options
        return spot_check(self.encoded, self.statement, checkpoint, [self.shard], **given)


@pytest.fixture
def answer(tmp_path: Path) -> Callable[..., Answer]:
    def make(
        *, claimed: int | None = None, own_views: bool = False, spec: EncoderSpec = SIMCLR
    ) -> Answer:
        """`claimed`: seed of the weights that really answered instead of those that are named."""
        paths = [tmp_path / name for name in ("before", "after")]
        for seed, path in enumerate(paths):
            save(build(spec, seed=seed), path)
        shard, tar = tmp_path / "shard.tar", tmp_path / "views.tar"
        write_shard(shard, samples(6))
        images = load_for(spec, [shard])
        learners = [build(spec, seed=seed if claimed is None else claimed) for seed in range(2)]
        if own_views:
            levels = _of_own_views(learners, images, tar)
        else:
            levels = outputs(*learners, images, views=VIEWS, seed=SEED, device="cpu")
        encoded = Encoded(
            images.keys,
            [each.sha256 for each in samples(6)],
            levels,
            None if own_views else SEED,
        )
        told = statement(
            encoding_id="enc_1",
            request_id="req_1",
            before=_weights("ckp_1", paths[0]),
            after=_weights("ckp_2", paths[1]),
            inputs=Inputs.registered(encoded.digests),
            encoded=encoded,
            data=pack(encoded),
            code_version="test",
            issued_at="2026-01-31T12:00:00Z",
        )
        return Answer(encoded, told, paths[0], paths[1], shard, tar)

    return make


def _weights(name: str, path: Path) -> Weights:
    release = path.with_suffix(".release")
    write_release(path, release)
    return Weights(name, *(f"sha256:{sha256_file(each)}" for each in (path, release)))


def _of_own_views(learners: list[Any], images: ImageSet, tar: Path) -> dict[Level, Outputs]:
    dataset = f"dst_{'0' * 32}"
    views = [
        (
            View(f"{key}__{n}.png", f"{dataset}/{key}", n, (0, 0, 16, 16), False, 0, 0),
            picture(100 * place + n),
        )
        for place, key in enumerate(images.keys)
        for n in range(2)
    ]
    write_views(tar, views)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for _, data in views])
    tensor = torch.from_numpy(pixels.reshape(6, 2, 16, 16, 3)).permute(1, 0, 4, 2, 3)
    placed = replace(images, ids=torch.arange(6))
    make = GivenViews(tensor, SIMCLR.mean, SIMCLR.std).several
    return stream_outputs(*learners, [placed], 6, views=2, device="cpu", make=make)


@pytest.mark.parametrize("side", ["before", "after"])
def test_honest_outputs_agree_on_both_sides(answer: Callable[..., Answer], side: str) -> None:
    honest = answer()
    found = honest.check(getattr(honest, side))
    assert (found.side, len(found.keys), found.agrees) == (side, 3, True)
    assert set(found.keys) <= set(honest.encoded.keys)


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_file_that_is_released_will_do_where_training_needs_more(
    answer: Callable[..., Answer], side: str
) -> None:
    for lie in (False, True):
        moco = answer(spec=MOCO, claimed=5 if lie else None)
        release = getattr(moco, side).with_suffix(".release")
        found = moco.check(release)
        assert (found.side, found.agrees) == (side, not lie)
        with pytest.raises(CheckpointMismatch, match="missing: key_encoder"):
            load(release)


def test_a_receipt_of_before_names_whole_files_only(answer: Callable[..., Answer]) -> None:
    old = answer(spec=MOCO)
    for side in ("before", "after"):
        del old.statement[side]["release_digest"]
    assert old.check(old.before).agrees
    with pytest.raises(BadEncoding, match="neither of the two"):
        old.check(old.before.with_suffix(".release"))


def test_outputs_of_other_weights_do_not(answer: Callable[..., Answer]) -> None:
    lie = answer(claimed=5)
    assert not lie.check(lie.before).agrees
    assert not lie.check(lie.after).agrees


def test_the_seed_chooses_which_samples(answer: Callable[..., Answer]) -> None:
    honest = answer()
    drawn = {tuple(honest.check(honest.before, seed=seed).keys) for seed in range(6)}
    assert len(drawn) > 1
    assert len(honest.check(honest.before, samples=100).keys) == 6


def test_a_file_that_is_neither_checkpoint_says_so(
    answer: Callable[..., Answer], tmp_path: Path
) -> None:
    honest = answer()
    other = tmp_path / "other"
    save(build(SIMCLR, seed=7), other)
    with pytest.raises(BadEncoding, match="neither of the two"):
        honest.check(other)


def test_shards_without_the_samples_say_so(answer: Callable[..., Answer]) -> None:
    honest = answer()
    write_shard(honest.shard, [make_sample("x", "png", picture(99))])
    with pytest.raises(BadEncoding, match="none of the encoded samples"):
        honest.check(honest.before)


def test_views_made_at_home_are_needed_again(answer: Callable[..., Answer]) -> None:
    honest = answer(own_views=True)
    with pytest.raises(BadEncoding, match="made at home"):
        honest.check(honest.before)
    assert honest.check(honest.after, own_views=honest.views).agrees


def test_the_command_compares_files_and_asks_no_service(
    answer: Callable[..., Answer], tmp_path: Path
) -> None:
    def run(given: Answer) -> Result:
        (tmp_path / "outputs.npz").write_bytes(pack(given.encoded))
        receipt = {"statement": given.statement, "envelope": None}
        (tmp_path / "receipt.json").write_text(json.dumps(receipt))
        files = ["--checkpoint", str(given.before), "--shards", str(given.shard)]
        return CliRunner().invoke(app, ["spot-check", str(tmp_path), *files])

    honest, lie = run(answer()), run(answer(claimed=5))
    assert (honest.exit_code, lie.exit_code) == (0, 1)
    assert "are those of this checkpoint" in " ".join(honest.output.split())
    assert "not those of this checkpoint" in " ".join(lie.output.split())
    (tmp_path / "outputs.npz").write_bytes(b"x")
    changed = CliRunner().invoke(
        app,
        ["spot-check", str(tmp_path), "--checkpoint", str(tmp_path), "--shards", str(tmp_path)],
    )
    assert changed.exit_code == 1
    assert "SHA-256" in changed.output
