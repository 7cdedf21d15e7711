"""Runs that were stopped and resumed against runs that were not, bit for bit."""

import math
import struct
import time
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
from expunge.unlearning.progress import OnProgress, Progress, RunStopped, TrainingResult
from expunge.unlearning.snapshots import RunState, SnapshotFile
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


@pytest.fixture
def always(snapshots: Snapshots) -> Snapshots:
    """Written after every step, whatever the time that takes."""
    return replace(snapshots, every_seconds=0.0, max_share=math.inf)


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
    simclr_run: Run, snapshots: Snapshots, always: Snapshots
) -> None:
    """Killed after a step, without a word: only what was written on the way is left."""
    whole = simclr_run()
    kept = snapshots.path.with_name("kept")

    def keep_the_fourth(progress: Progress) -> None:
        if progress.step == 5:
            kept.write_bytes(snapshots.path.read_bytes())

    assert_same(simclr_run(always, keep_the_fourth), whole)
    kept.replace(snapshots.path)
    seen: list[Progress] = []
    assert_same(simclr_run(snapshots, seen.append), whole)
    assert seen[0].step == 5


def test_a_run_that_is_asked_to_stop_finishes_its_step_and_keeps_it(
    simclr_run: Run, snapshots: Snapshots
) -> None:
    whole = simclr_run()
    for last in (1, 3, 5, STEPS):
        asked, written = [0], []

        def should_stop(asked: list[int] = asked, last: int = last) -> bool:
            asked[0] += 1
            return asked[0] == last

        with pytest.raises(RunStopped):
            simclr_run(replace(snapshots, should_stop=should_stop, on_written=written.append))
        assert written == [last]
        resumed: list[int] = []
        assert_same(simclr_run(replace(snapshots, on_resumed=resumed.append)), whole)
        assert resumed == [last]


def test_a_run_that_starts_from_the_beginning_is_not_said_to_be_resumed(
    simclr_run: Run, always: Snapshots
) -> None:
    resumed: list[int] = []
    written: list[int] = []
    simclr_run(replace(always, on_resumed=resumed.append, on_written=written.append))
    assert resumed == []
    assert written == list(range(1, STEPS + 1))


def test_a_snapshot_is_in_its_place_when_it_is_told_of(simclr_run: Run, always: Snapshots) -> None:
    partial = always.path.with_name("run.snapshot.partial")

    def look(_: int) -> None:
        assert always.path.exists()
        assert not partial.exists()

    simclr_run(replace(always, on_written=look))


@pytest.mark.parametrize(("every", "share"), [(0.0, 0.1), (0.0, 0.5), (0.1, 0.5)])
def test_the_pause_grows_with_what_a_write_takes(
    simclr_spec: EncoderSpec, snapshots: Snapshots, every: float, share: float
) -> None:
    file = SnapshotFile(replace(snapshots, every_seconds=every, max_share=share), {})
    learner = build(simclr_spec, seed=0)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.1)
    for _ in range(3):
        before = time.perf_counter()
        file.write(RunState(), learner, optimiser, torch.device("cpu"))
        after = time.perf_counter()
        while not file.due():
            pass
        pause = time.perf_counter() - after
        # Nearly all of the call is the write itself.
        assert pause >= max(0.9 * every, 0.8 * (after - before) / share)
    first = SnapshotFile(replace(snapshots, every_seconds=1e9), {})
    assert not first.due()


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


def test_a_run_that_ends_well_leaves_no_file(simclr_run: Run, always: Snapshots) -> None:
    """Not even what a crash in the middle of a write left."""
    always.path.with_name("run.snapshot.partial").write_bytes(b"half")
    simclr_run(always)
    assert not list(always.path.parent.iterdir())


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
    reason = "it is no snapshot of this version" if damage == "foreign" else "it is damaged"
    with pytest.raises(SnapshotMismatch, match=reason):
        simclr_run(snapshots)


def test_a_flipped_bit_anywhere_is_noticed(moco_spec: EncoderSpec, snapshots: Snapshots) -> None:
    """In the header (names, types, shapes, offsets, what is noted of the run) and in the tensors."""
    device = torch.device("cpu")
    learner = build(moco_spec, seed=1)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    for weight in learner.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    file = SnapshotFile(snapshots, {})
    file.write(RunState(history=[{"loss": 1.5}]), learner, optimiser, device)
    assert file.restore(learner, optimiser, device) is not None
    data = bytearray(snapshots.path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    in_header = [*range(8), *range(8, len(data[:header].rstrip()), 293)]
    in_tensors = [*range(header, len(data), len(data) // 40), len(data) - 1]
    for position in in_header + in_tensors:
        for bit in (0x01, 0x08):
            data[position] ^= bit
            snapshots.path.write_bytes(data)
            data[position] ^= bit
            reason = "it is damaged" if position in in_tensors else "it is (damaged|no snapshot)"
            with pytest.raises(SnapshotMismatch, match=reason):
                file.restore(learner, optimiser, device)


def test_a_snapshot_of_another_version_of_the_network_is_refused(
    simclr_spec: EncoderSpec, moco_spec: EncoderSpec, snapshots: Snapshots
) -> None:
    """Whole and of the same run, but the code that reads it keeps other tensors."""
    device = torch.device("cpu")
    learner = build(simclr_spec, seed=0)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.1)
    SnapshotFile(snapshots, {}).write(RunState(), learner, optimiser, device)
    other = build(moco_spec, seed=0)
    with pytest.raises(SnapshotMismatch, match="it was written by another version"):
        SnapshotFile(snapshots, {}).restore(other, optimiser, device)


def test_a_write_that_fails_leaves_the_old_snapshot(
    simclr_run: Run, snapshots: Snapshots, always: Snapshots
) -> None:
    with pytest.raises(Stopped):
        simclr_run(snapshots, stop_at(4))
    before = snapshots.path.read_bytes()
    # A folder where the new file is to be written stands for a disk that takes no more.
    partial = snapshots.path.with_name("run.snapshot.partial")
    partial.mkdir()
    with pytest.raises(Exception, match="directory"):
        simclr_run(always)
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
    with pytest.raises(NonFiniteLossError):
        run(replace(snapshots, should_stop=lambda: True))
    assert not snapshots.path.exists()
