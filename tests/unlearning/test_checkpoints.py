import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.formats.damage import spoiled, tried

from expunge.formats.tensors import is_release
from expunge.unlearning.catalog import BYOL, EncoderSpec, MoCo, PretrainParams, SimCLR
from expunge.unlearning.checkpoints import FORMAT, CheckpointMismatch, check, load, read_spec, save
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.frameworks import build
from expunge.unlearning.training import pretrain

MakeImages = Callable[..., ImageSet]
Read = Callable[[Path], object]


@pytest.fixture(params=["simclr", "moco", "byol", "supervised"])
def spec(
    request: pytest.FixtureRequest,
    simclr_spec: EncoderSpec,
    moco_spec: EncoderSpec,
    byol_spec: EncoderSpec,
    supervised_spec: EncoderSpec,
) -> EncoderSpec:
    return {
        "simclr": simclr_spec,
        "moco": moco_spec,
        "byol": byol_spec,
        "supervised": supervised_spec,
    }[request.param]


@pytest.fixture(params=[load, check])
def read(request: pytest.FixtureRequest) -> Read:
    """Both ways to look at a file refuse the same, in the same words."""
    found: Read = request.param
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "encoder.safetensors"


def rewrite(path: Path, spec: EncoderSpec, tensors: dict[str, torch.Tensor]) -> None:
    """As a foreign tool would write it, with the library."""
    save_file(tensors, path, metadata={"format": FORMAT, "spec": spec.model_dump_json()})


def test_a_learner_survives_saving_with_its_queue(
    make_images: MakeImages, spec: EncoderSpec, path: Path
) -> None:
    params = PretrainParams(epochs=1, batch_size=8)
    learner = pretrain(spec, make_images(12), params, seed=0).learner
    save(learner, path)
    loaded = load(path)
    assert loaded.spec == spec == read_spec(path)
    assert not loaded.training
    for name, tensor in learner.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    if spec.framework == "moco":
        assert set(loaded.state_dict()["queue_ids"].tolist()) & set(make_images(12).ids.tolist())


def test_equal_learners_give_equal_bytes(spec: EncoderSpec, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    extra = {"zeta": "1", "alpha": "2", "job": "3"}
    save(build(spec, seed=1), path, extra=extra)
    save(build(spec, seed=1), other, extra=dict(reversed(extra.items())))
    assert path.read_bytes() == other.read_bytes()


def test_the_file_is_plain_safetensors(spec: EncoderSpec, path: Path) -> None:
    learner = build(spec, seed=1)
    save(learner, path)
    tensors = load_file(path)
    assert tensors.keys() == learner.state_dict().keys()
    prefixes = {name.split(".")[0] for name in tensors}
    beside_the_encoder = {
        "simclr": {"projector"},
        "moco": {
            "projector",
            "key_encoder",
            "key_projector",
            "queue",
            "queue_ids",
            "queue_pointer",
        },
        "byol": {"projector", "predictor", "target_encoder", "target_projector"},
        "supervised": {"classifier"},
    }
    assert prefixes == {"encoder"} | beside_the_encoder[spec.framework]


def test_a_file_that_is_loaded_passes_the_check(spec: EncoderSpec, path: Path) -> None:
    save(build(spec, seed=0), path)
    check(path)


def test_what_may_leave_as_it_is_is_stored_once(spec: EncoderSpec, path: Path) -> None:
    save(build(spec, seed=0), path)
    assert is_release(path) == (spec.framework in ("simclr", "supervised"))


MEASURED = """
import resource, sys
from pathlib import Path
from expunge.unlearning.checkpoints import check
check(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
check(Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
"""Checks a small file and a large one, and prints by how many KiB memory grew over the large one."""


def test_a_check_needs_no_more_memory_for_a_large_file(moco_spec: EncoderSpec, path: Path) -> None:
    small = path.with_name("small")
    save(build(moco_spec, seed=0), small)
    large = MoCo(projector_dim=4096, queue_size=8192)
    save(build(moco_spec.model_copy(update={"objective": large}), seed=0), path)
    assert path.stat().st_size > 100 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(small), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 1024


def test_a_misfit_is_refused_with_the_names_and_shapes(
    simclr_spec: EncoderSpec, path: Path, read: Read
) -> None:
    tensors = build(simclr_spec, seed=0).state_dict()
    del tensors["projector.0.weight"]
    tensors["decoder.weight"] = torch.zeros(1)
    tensors["encoder.conv1.weight"] = torch.zeros(4, 3, 7, 7)
    rewrite(path, simclr_spec, tensors)
    with pytest.raises(CheckpointMismatch) as refused:
        read(path)
    message = str(refused.value)
    assert "missing: projector.0.weight" in message
    assert "unexpected: decoder.weight" in message
    assert "encoder.conv1.weight is F32 [4, 3, 7, 7], expected F32 [4, 3, 3, 3]" in message


def test_a_checkpoint_of_another_framework_is_refused(
    spec: EncoderSpec, path: Path, read: Read
) -> None:
    """Though the encoders are the same."""
    others = {"simclr": MoCo(), "moco": SimCLR(), "byol": SimCLR(), "supervised": BYOL()}
    claimed = spec.model_copy(update={"objective": others[spec.framework]})
    rewrite(path, claimed, build(spec, seed=0).state_dict())
    with pytest.raises(CheckpointMismatch, match="do not fit the header's specification"):
        read(path)


def test_another_number_format_is_refused(simclr_spec: EncoderSpec, path: Path, read: Read) -> None:
    tensors = build(simclr_spec, seed=0).state_dict()
    tensors["projector.3.bias"] = tensors["projector.3.bias"].half()
    rewrite(path, simclr_spec, tensors)
    with pytest.raises(CheckpointMismatch, match=r"projector.3.bias is F16 \[8\], expected F32"):
        read(path)


def test_values_that_are_not_finite_are_refused(
    simclr_spec: EncoderSpec, path: Path, read: Read
) -> None:
    tensors = build(simclr_spec, seed=0).state_dict()
    tensors["projector.3.bias"][2] = float("inf")
    rewrite(path, simclr_spec, tensors)
    with pytest.raises(CheckpointMismatch, match=r"not finite: projector.3.bias"):
        read(path)


def test_a_queue_pointer_outside_the_queue_is_refused(
    moco_spec: EncoderSpec, path: Path, read: Read
) -> None:
    tensors = build(moco_spec, seed=0).state_dict()
    tensors["queue_pointer"] += 24
    rewrite(path, moco_spec, tensors)
    with pytest.raises(CheckpointMismatch, match="queue_pointer is 24, expected 0 to 23"):
        read(path)


def test_a_file_that_is_no_checkpoint_is_refused(
    simclr_spec: EncoderSpec, path: Path, read: Read
) -> None:
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointMismatch, match="not a safetensors file"):
        read(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointMismatch, match="names format None"):
        read(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": FORMAT, "spec": "{}"})
    with pytest.raises(CheckpointMismatch, match="no valid encoder specification"):
        read(path)


def test_a_truncated_file_is_refused(simclr_spec: EncoderSpec, path: Path, read: Read) -> None:
    save(build(simclr_spec, seed=0), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointMismatch, match="not a safetensors file"):
        read(path)


@tried(20)
@given(data=st.data())
def test_a_spoiled_file_is_loaded_or_refused(
    simclr_spec: EncoderSpec, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "encoder.safetensors"
    save(build(simclr_spec, seed=0), path)
    whole = path.read_bytes()
    # The structure is in front; what is spoiled behind it are weights.
    path.write_bytes(data.draw(spoiled(whole[:4_000])) + whole[4_000:])
    outcomes = []
    for look in (load, check):
        with suppress(CheckpointMismatch):
            look(path)
            outcomes.append(look)
    assert len(outcomes) != 1, "they refuse the same"
