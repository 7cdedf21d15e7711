"""Runs that were stopped and resumed against runs that were not, bit for bit."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.unlearning import progress as progress_module
from expunge.unlearning.catalog import EncoderSpec, MoCo, PretrainParams
from expunge.unlearning.data.captions import Captions
from expunge.unlearning.data.image_set import ImageSet
from expunge.unlearning.errors import NonFiniteLossError, SnapshotMismatch
from expunge.unlearning.frameworks import Learner, build
from expunge.unlearning.progress import OnProgress, Progress, TrainingResult
from expunge.unlearning.training import Snapshots, pretrain, unlearn

MakeImages = Callable[..., ImageSet]
SEED = 11
EPOCHS, STEPS = 3, 9
"""Of every run here: 24 samples, or 18 retained and 6 unlearn, in batches of 8."""


class Stopped(Exception):
    """Raised by a callback, as a cancelled job would."""


@dataclass
class Run:
    """One run that can be started again and again from the same beginning."""

    spec: EncoderSpec
    images: ImageSet
    method: str | None
    params: dict[str, Any]

    def __call__(
        self,
        snapshots: Snapshots | None = None,
        on_progress: OnProgress | None = None,
        *,
        seed: int = SEED,
        scored: bool = False,
    ) -> TrainingResult:
        kept = {"snapshots": snapshots, "on_progress": on_progress}
        if self.method is None:
            return pretrain(self.spec, self.images, self.params, seed=seed, **kept)
        retain, forget = self.images.subset(range(18)), self.images.subset(range(18, 24))
        score = weight_sum if scored else None
        learner = build(self.spec, seed=1)
        return unlearn(
            learner, retain, forget, self.method, self.params, seed=seed, score=score, **kept
        )


def weight_sum(learner: Learner) -> float:
    """Draws at random too, as scores with random views do."""
    noise = torch.rand(()).item()
    return noise - sum(float(p.detach().sum()) for p in learner.encoder.parameters())


def stop_at(step: int) -> OnProgress:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise Stopped

    return stop


def assert_same(one: TrainingResult, two: TrainingResult) -> None:
    left, right = one.learner.state_dict(), two.learner.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    assert one.history == two.history
    assert one.scores == two.scores
    assert one.best_epoch == two.best_epoch
    assert one.steps == two.steps == STEPS


@pytest.fixture(autouse=True)
def _report_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "REPORT_SECONDS", 0.0)


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    """Written only when a run is stopped."""
    return Snapshots(tmp_path / "run.snapshot", every_seconds=1e9)


@pytest.fixture(params=["simclr", "moco", "moco split", "byol", "supervised"])
def spec_of_each(
    request: pytest.FixtureRequest,
    simclr_spec: EncoderSpec,
    moco_spec: EncoderSpec,
    byol_spec: EncoderSpec,
    supervised_spec: EncoderSpec,
) -> EncoderSpec:
    split = MoCo(projector_dim=8, queue_size=24, bn_splits=2)
    return {
        "simclr": simclr_spec,
        "moco": moco_spec,
        "moco split": moco_spec.model_copy(update={"objective": split}),
        "byol": byol_spec,
        "supervised": supervised_spec,
    }[request.param]


@pytest.fixture
def simclr_run(make_images: MakeImages, simclr_spec: EncoderSpec) -> Run:
    params = {"epochs": EPOCHS, "batch_size": 8}
    return Run(simclr_spec, make_images(24), "alignment_calibration", params)


@pytest.mark.parametrize("phase", ["pretrain", "unlearn"])
def test_a_stopped_run_resumes_bit_for_bit(
    make_images: MakeImages, spec_of_each: EncoderSpec, snapshots: Snapshots, phase: str
) -> None:
    """Stopped at the first step, within epochs, at their ends, and after the last step."""
    defined = spec_of_each.framework in ("simclr", "moco")
    method = "alignment_calibration" if defined else "neg_grad"
    run = Run(
        spec_of_each,
        make_images(24),
        None if phase == "pretrain" else method,
        {"epochs": EPOCHS, "batch_size": 8, "learning_rate": 0.02},
    )
    whole = run()
    for step in (1, 5) if phase == "pretrain" else (1, 3, 5, STEPS):
        with pytest.raises(Stopped):
            run(snapshots, stop_at(step))
        assert snapshots.path.exists()
        seen: list[Progress] = []
        assert_same(run(snapshots, seen.append), whole)
        assert seen[0].step == min(step + 1, STEPS)
        assert not list(snapshots.path.parent.iterdir())


def test_adamw_and_a_rising_rate_resume_bit_for_bit(
    make_images: MakeImages, supervised_spec: EncoderSpec, snapshots: Snapshots
) -> None:
    params = {"epochs": EPOCHS, "batch_size": 8, "optimiser": "adamw", "warmup_epochs": 1}
    run = Run(supervised_spec, make_images(24), None, params)
    whole = run()
    for step in (2, 6):
        with pytest.raises(Stopped):
            run(snapshots, stop_at(step))
        assert_same(run(snapshots), whole)


@pytest.mark.parametrize("queue_init", ["checkpoint", "retain", "random"])
def test_a_queue_however_it_began_resumes_bit_for_bit(
    make_images: MakeImages, moco_spec: EncoderSpec, snapshots: Snapshots, queue_init: str
) -> None:
    params = {"epochs": EPOCHS, "batch_size": 8, "queue_init": queue_init}
    run = Run(moco_spec, make_images(24), "alignment_calibration", params)
    whole = run()
    with pytest.raises(Stopped):
        run(snapshots, stop_at(4))
    assert_same(run(snapshots), whole)


def test_a_run_stopped_again_and_again_is_still_the_same(
    simclr_run: Run, snapshots: Snapshots
) -> None:
    whole = simclr_run()
    for step in range(1, STEPS + 1):
        with pytest.raises(Stopped):
            simclr_run(snapshots, stop_at(step))
    assert_same(simclr_run(snapshots), whole)


def test_the_best_epoch_survives_a_stop(simclr_run: Run, snapshots: Snapshots) -> None:
    whole = simclr_run(scored=True)
    assert len(whole.scores) == EPOCHS
    assert whole.best_epoch is not None
    assert whole.best_epoch < EPOCHS
    for step in (2, 3, 7, STEPS):
        with pytest.raises(Stopped):
            simclr_run(snapshots, stop_at(step), scored=True)
        assert_same(simclr_run(snapshots, scored=True), whole)


def test_a_run_that_dies_goes_on_from_its_last_snapshot(
    simclr_run: Run, snapshots: Snapshots
) -> None:
    """Killed after a step, without a word: only what was written on the way is left."""
    whole = simclr_run()
    often = replace(snapshots, every_seconds=0.0)
    kept = snapshots.path.with_name("kept")

    def keep_the_fourth(progress: Progress) -> None:
        if progress.step == 5:
            kept.write_bytes(snapshots.path.read_bytes())

    assert_same(simclr_run(often, keep_the_fourth), whole)
    kept.replace(snapshots.path)
    seen: list[Progress] = []
    assert_same(simclr_run(snapshots, seen.append), whole)
    assert seen[0].step == 5


def test_time_before_a_stop_counts(simclr_run: Run, snapshots: Snapshots) -> None:
    with pytest.raises(Stopped):
        simclr_run(snapshots, stop_at(STEPS))
    resumed = simclr_run(snapshots)
    assert resumed.steps == STEPS
    assert 0 < resumed.images_per_second == pytest.approx(STEPS * 8 / resumed.seconds, rel=0.2)


def test_without_snapshots_no_file_is_written(
    simclr_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped):
        simclr_run(None, stop_at(4))
    simclr_run()
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_well_leaves_no_file(simclr_run: Run, snapshots: Snapshots) -> None:
    """Not even what a crash in the middle of a write left."""
    snapshots.path.with_name("run.snapshot.partial").write_bytes(b"half")
    simclr_run(replace(snapshots, every_seconds=0.0))
    assert not list(snapshots.path.parent.iterdir())


def changed(run: Run, what: str) -> Run:
    images = run.images
    assert images.labels is not None
    captions = Captions(torch.ones(24, 4, dtype=torch.int64), torch.arange(24), torch.ones(24))
    return {
        "params": replace(run, params=run.params | {"beta": 7.0}),
        "method": replace(run, method="neg_grad"),
        "samples": replace(run, images=images.subset([*range(23), 0])),
        "order": replace(run, images=images.subset([1, 0, *range(2, 24)])),
        "labels": replace(run, images=replace(images, labels=images.labels.flip(0))),
        "captions": replace(run, images=replace(images, captions=captions)),
    }[what]


@pytest.mark.parametrize("what", ["params", "method", "samples", "order", "labels", "captions"])
def test_a_snapshot_of_another_run_is_refused(
    simclr_run: Run, snapshots: Snapshots, what: str
) -> None:
    with pytest.raises(Stopped):
        simclr_run(snapshots, stop_at(4))
    before = snapshots.path.read_bytes()
    with pytest.raises(SnapshotMismatch, match="does not fit this run: it is of another run"):
        changed(simclr_run, what)(snapshots)
    assert snapshots.path.read_bytes() == before


def test_a_snapshot_of_another_seed_or_without_scores_is_refused(
    simclr_run: Run, snapshots: Snapshots
) -> None:
    with pytest.raises(Stopped):
        simclr_run(snapshots, stop_at(4))
    with pytest.raises(SnapshotMismatch):
        simclr_run(snapshots, seed=SEED + 1)
    with pytest.raises(SnapshotMismatch):
        simclr_run(snapshots, scored=True)
    with pytest.raises(SnapshotMismatch):
        pretrain(
            simclr_run.spec,
            simclr_run.images,
            PretrainParams(epochs=1),
            seed=SEED,
            snapshots=snapshots,
        )


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "foreign"])
def test_a_damaged_snapshot_is_refused_with_the_reason(
    simclr_run: Run, snapshots: Snapshots, damage: str
) -> None:
    with pytest.raises(Stopped):
        simclr_run(snapshots, stop_at(4))
    data = snapshots.path.read_bytes()
    foreign = b'{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    snapshots.path.write_bytes(
        {
            "cut": data[:-100],
            "empty": b"",
            "header": data[:8] + b"!" * 40 + data[48:],
            "foreign": struct.pack("<Q", len(foreign)) + foreign + bytes(4),
        }[damage]
    )
    reason = "it is of another run" if damage == "foreign" else "it cannot be read"
    with pytest.raises(SnapshotMismatch, match=reason):
        simclr_run(snapshots)


def test_a_write_that_fails_leaves_the_old_snapshot(simclr_run: Run, snapshots: Snapshots) -> None:
    with pytest.raises(Stopped):
        simclr_run(snapshots, stop_at(4))
    before = snapshots.path.read_bytes()
    # A folder where the new file is to be written stands for a disk that takes no more.
    partial = snapshots.path.with_name("run.snapshot.partial")
    partial.mkdir()
    with pytest.raises(Exception, match="directory"):
        simclr_run(replace(snapshots, every_seconds=0.0))
    assert snapshots.path.read_bytes() == before
    partial.rmdir()
    assert_same(simclr_run(snapshots), simclr_run())


def test_a_loss_that_is_not_finite_never_becomes_a_snapshot_by_stopping(
    simclr_run: Run, snapshots: Snapshots
) -> None:
    # Normalising by so small a deviation overflows.
    run = replace(simclr_run, spec=simclr_run.spec.model_copy(update={"std": (1e-38,) * 3}))
    with pytest.raises(NonFiniteLossError):
        run(snapshots)
    assert not snapshots.path.exists()
