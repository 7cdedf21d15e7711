"""The README's example of the algorithms alone runs as it stands there."""

import re
import shutil
from pathlib import Path

import pytest

from expunge.embedded import demonstration
from expunge.unlearning import checkpoints
from expunge.unlearning.catalog import Architecture, EncoderSpec, SimCLR
from expunge.unlearning.frameworks import build

README = Path(__file__).parents[1] / "README.md"
SAMPLE = Path(demonstration.__file__).parents[1] / "sample"


def test_the_library_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "expunge.unlearning" in block]
    spec = EncoderSpec(objective=SimCLR(), architecture=Architecture(width=4))
    checkpoints.save(build(spec, seed=0), tmp_path / "encoder.safetensors")
    shutil.copy(SAMPLE / "retained.tar", tmp_path / "retain.tar")
    shutil.copy(SAMPLE / "owner_a.tar", tmp_path / "forget.tar")
    shutil.copy(SAMPLE / "control.tar", tmp_path / "test.tar")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(README), "exec"), {})  # noqa: S102 - our own README
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == [
        "emia",
        "ra",
        "ta",
        "ua",
        "cmia",
    ]
