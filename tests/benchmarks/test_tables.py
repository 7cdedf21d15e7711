"""The tables' command at its smallest scale, on the bundled sample: stopped, gone on with, carried."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from expunge.embedded import demonstration

ROOT = Path(__file__).parents[2]
SAMPLE = Path(demonstration.__file__).parents[1] / "sample"
NOT_FINISHED = 3


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of training and test shards, as the full data set has them."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(SAMPLE / "retained.tar", folder / "train-00.tar")
    shutil.copy(SAMPLE / "control.tar", folder / "test-00.tar")
    return folder


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def tables(folder: Path, shards: Path, *extra: str) -> int:
    """Run the command with everything below `folder`; its exit status."""
    done = command(
        *("--scale", "tiny", "--seeds", "0,1", "--threads", "1", "--name", "tiny"),
        *("--data", f"{shards}/", "--work", str(folder / "work"), f"--results={folder}"),
        *extra,
    )
    assert done.returncode in (0, NOT_FINISHED), done.stderr
    return done.returncode


def test_a_stopped_table_is_gone_on_with_and_stands_beside_the_paper(
    tmp_path: Path, shards: Path
) -> None:
    assert tables(tmp_path, shards, "--minutes", "0") == NOT_FINISHED
    assert not (tmp_path / "tiny-simclr-table.md").exists()
    assert tables(tmp_path, shards) == 0
    page = (tmp_path / "tiny-simclr-table.md").read_text()
    beside = page[page.index("## Beside the paper") :]
    for method, printed in (("alignment_calibration", "1.65"), ("fine_tune", "2.49")):
        (line,) = [each for each in beside.splitlines() if each.startswith(f"| {method} |")]
        assert line.endswith(f" | {printed} |")
    result = json.loads((tmp_path / "tiny-simclr-table.json").read_text())
    rows = result["comparison"]["rows"]
    assert [row["kind"] for row in rows] == ["before", "retrain", "candidate", "candidate"]
    assert all(row["columns"]["emia"]["seeds"] == [0, 1] for row in rows)
    assert str(tmp_path) not in page
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("runs/*.json")}
    assert tables(tmp_path, shards) == 0
    assert kept == {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("runs/*.json")}


def test_finished_stages_travel_in_small_files(tmp_path: Path, shards: Path) -> None:
    packed = tmp_path / "packed"
    assert tables(tmp_path, shards, "--stage", "pretrain", "--pack", str(packed)) == 0
    assert all(path.stat().st_size < 16_000_000 for path in packed.iterdir())
    there = tmp_path / "there"
    assert tables(there, shards, "--stage", "pretrain", "--unpack", str(packed)) == 0
    name = Path("work") / "tiny" / "simclr-0" / "pretrained.safetensors"
    own, carried = load_file(tmp_path / name), load_file(there / name)
    assert own.keys() == carried.keys()
    for key, value in own.items():
        if value.is_floating_point():
            assert (value - carried[key]).abs().max() <= value.abs().max() * 2**-8


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--scale mini --data {data} --frameworks clip", "clip needs --captions"),
        ("--scale mini --captions {data} --frameworks clip --ablation", "no ablation of clip"),
        ("--scale paper --data {data} --frameworks simclr", "scale paper needs 50000 images, not"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_trained(
    tmp_path: Path, shards: Path, arguments: str, why: str
) -> None:
    work = tmp_path / "work"
    given = arguments.format(data=shards).split()
    done = command(*given, "--work", str(work), "--name", "x")
    assert done.returncode not in (0, NOT_FINISHED)
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert not work.exists()
