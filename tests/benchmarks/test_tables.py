"""The tables' command at its smallest scale, on the bundled sample: stopped, gone on with, carried."""

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
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


@pytest.fixture
def tables_py(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The command as a module, in this process: each of its own would import torch for seconds."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    threads = torch.get_num_threads()
    yield importlib.import_module("tables")
    torch.set_num_threads(threads)


class Tables:
    """The command, with everything it writes below the folder of each call."""

    def __init__(self, module: ModuleType, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._main: Callable[[], int] = module.main
        self.shards = shards
        self._monkeypatch = monkeypatch

    def run(self, *arguments: str) -> int:
        """Exit status of the command with these arguments."""
        self._monkeypatch.setattr("sys.argv", ["benchmarks/tables.py", *arguments])
        return self._main()

    def tiny(self, folder: Path, *extra: str) -> int:
        """The same at the smallest scale."""
        return self.run(
            *("--scale", "tiny", "--seeds", "0,1", "--threads", "1", "--name", "tiny"),
            *("--data", f"{self.shards}/", "--work", str(folder / "work")),
            *(f"--results={folder}", *extra),
        )


@pytest.fixture
def tables(tables_py: ModuleType, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Tables:
    return Tables(tables_py, shards, monkeypatch)


def test_a_stopped_table_is_gone_on_with_and_stands_beside_the_paper(
    tmp_path: Path, tables: Tables
) -> None:
    assert tables.tiny(tmp_path, "--minutes", "0") == NOT_FINISHED
    assert not (tmp_path / "tiny-simclr-table.md").exists()
    assert tables.tiny(tmp_path) == 0
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
    assert tables.tiny(tmp_path) == 0
    assert kept == {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("runs/*.json")}


def test_finished_stages_travel_in_small_files(tmp_path: Path, tables: Tables) -> None:
    packed = tmp_path / "packed"
    assert tables.tiny(tmp_path, "--stage", "pretrain", "--pack", str(packed)) == 0
    assert all(path.stat().st_size < 16_000_000 for path in packed.iterdir())
    there = tmp_path / "there"
    assert tables.tiny(there, "--stage", "pretrain", "--unpack", str(packed)) == 0
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
    tmp_path: Path,
    tables: Tables,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    why: str,
) -> None:
    work = tmp_path / "work"
    given = arguments.format(data=tables.shards).split()
    with pytest.raises(SystemExit) as refused:
        tables.run(*given, "--work", str(work), "--name", "x")
    assert refused.value.code not in (0, NOT_FINISHED)
    assert why in capsys.readouterr().err + str(refused.value)
    assert not work.exists()
