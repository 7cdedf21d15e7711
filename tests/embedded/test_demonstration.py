"""The whole demo with a tiny encoder: real services, real images, everything it leaves behind."""

import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from tests.client.conftest import TINY

from expunge.embedded.demonstration.command import SAMPLE_FOLDER, run_demo
from expunge.embedded.demonstration.setting import SAMPLE
from expunge.embedded.demonstration.split import Sizes, SplitError, split
from expunge.embedded.stack import StackError, remove_state
from expunge.formats.digests import sha256_file
from expunge.formats.shards import iter_samples


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards named as the full data set's are."""
    folder = tmp_path_factory.mktemp("cifar")
    shutil.copy(SAMPLE_FOLDER / "retained.tar", folder / "train-00.tar")
    shutil.copy(SAMPLE_FOLDER / "owner_a.tar", folder / "train-01.tar")
    shutil.copy(SAMPLE_FOLDER / "control.tar", folder / "test-00.tar")
    return folder


@pytest.fixture(scope="module")
def shown(cifar: Path) -> Iterator[tuple[str, Path]]:
    """What the demo printed, and the folder it left."""
    # Not below pytest's own folder: see the fixture `postgres`.
    with tempfile.TemporaryDirectory(prefix="expunge-tests-") as folder:
        out = Path(folder) / "demo"
        console = Console(file=io.StringIO(), width=100)
        run_demo(console, TINY, cifar, out, seed=3)
        assert isinstance(console.file, io.StringIO)
        yield console.file.getvalue(), out


def summary(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return document


def test_the_summary_has_every_number_the_owners_need(shown: tuple[str, Path]) -> None:
    document = summary(shown[1])
    assert [owner["name"] for owner in document["owners"]] == ["Ada", "Ben"]
    for owner in document["owners"]:
        assert owner["images"] == TINY.sizes.owner
        assert owner["verdict"]["sentence"]
        for level in ("encoder", "projector"):
            found = owner["levels"][level]
            assert len(found["forgetting_score"]["interval"]) == 2
            assert "per_sample" not in found["forgetting_score"]
            for when in ("before", "after", "change"):
                low, high = found["negative_alignment"][when]["interval"]
                assert low <= found["negative_alignment"][when]["mean"] <= high
            assert found["control"]["forgetting_score"]["n"] == TINY.sizes.control
            assert found["contrast"]["forgetting_score"]["interval"]
    base, result = document["checkpoints"]["base"], document["checkpoints"]["result"]
    assert base["digest"].startswith("sha256:")
    assert base["digest"] != result["digest"]
    assert document["seconds"]["pretraining"] > 0
    assert document["seconds"]["unlearning"] > 0
    assert document["images_per_second"]["unlearning"] > 0
    assert document["hardware"]["hardware"]


def test_every_heat_map_lies_where_the_summary_says(shown: tuple[str, Path]) -> None:
    for owner in summary(shown[1])["owners"]:
        assert len(owner["pictures"]) == 6
        for picture in owner["pictures"]:
            assert (shown[1] / picture).read_bytes().startswith(b"\x89PNG")


def test_the_story_tells_that_the_owners_cannot_see_each_other(shown: tuple[str, Path]) -> None:
    assert shown[0].count("looks for the other's request and photos: 404, 404, 404") == 2
    assert "one job for both requests" in shown[0]


def test_the_log_of_a_ci_stays_short(shown: tuple[str, Path]) -> None:
    assert len(shown[0].splitlines()) < 150


def test_nothing_is_left_running(shown: tuple[str, Path]) -> None:
    left = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = " ".join(process.info["cmdline"] or [])
        environment = process.info["environ"] or {}
        if str(shown[1]) in command + environment.get("EXPUNGE_WORK_DIR", ""):
            left.append(command)
    assert left == []


def test_the_keys_are_for_this_user_only(shown: tuple[str, Path]) -> None:
    for path in (shown[1] / "keys.env", shown[1] / "state" / "operator.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == os.getuid()


def test_the_parts_share_no_image_and_the_control_comes_from_the_test_set(
    cifar: Path, tmp_path: Path
) -> None:
    parts = split(cifar, tmp_path, Sizes(retained=None, owner=30, control=20))
    digests = {
        part: [sample.sha256 for shard in shards for sample in iter_samples(shard)]
        for part, shards in parts.items()
    }
    counts = {part: len(found) for part, found in digests.items()}
    total = SAMPLE.sizes.retained or 0
    assert counts == {
        "owner_a": 30,
        "owner_b": 30,
        "retained": total + SAMPLE.sizes.owner - 60,
        "control": 20,
    }
    assert len(set().union(*digests.values())) == sum(counts.values())
    tested = {sample.sha256 for sample in iter_samples(cifar / "test-00.tar")}
    assert set(digests["control"]) <= tested


def test_too_few_images_are_said(cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="control needs 100000 images, only 512 are left"):
        split(cifar, tmp_path, Sizes(retained=10, owner=10, control=100_000))
    with pytest.raises(SplitError, match=r"holds no shards named train-\*\.tar"):
        split(tmp_path, tmp_path / "out", TINY.sizes)


def test_the_bundled_sample_is_what_its_manifest_says() -> None:
    manifest = json.loads((SAMPLE_FOLDER / "manifest.json").read_text())
    assert "CIFAR-10" in manifest["source"]
    for name, entry in manifest["files"].items():
        shard = SAMPLE_FOLDER / name
        assert sha256_file(shard) == entry["sha256"]
        assert sum(1 for _ in iter_samples(shard)) == entry["samples"]


def test_a_folder_that_is_no_state_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(StackError, match="is not the state folder of a stack"):
        remove_state(tmp_path)
    assert (tmp_path / "photo.jpg").exists()
