"""What a run manifest says of data, code and machine, and that one digest stands for all of it."""

import hashlib
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from expunge.evidence import manifest as module
from expunge.evidence.manifest import (
    MANIFEST_TYPE,
    Data,
    Manifest,
    Weights,
    data_root,
    environment,
    revision,
)


def data(*digests: str) -> list[Data]:
    return [Data(dataset_id="dst", digest=each, samples=1) for each in digests]


def manifest(seed: str = "0") -> Manifest:
    return Manifest(
        type=MANIFEST_TYPE,
        kind="unlearn",
        encoder={"image_size": 16},
        method="fine_tune",
        params={"lr": 0.01},
        seed=seed,
        retain=data("sha256:b"),
        unlearn=data("sha256:a"),
        data_root=data_root(data("sha256:b", "sha256:a")),
        base=Weights(digest="sha256:0", release_digest="sha256:1"),
        result=Weights(digest="sha256:2", release_digest="sha256:3"),
        environment=environment(
            device="cpu", precision="float32", hardware="one core", threads=1, cuda=None
        ),
    )


def test_the_root_of_the_data_does_not_depend_on_its_order() -> None:
    expected = hashlib.sha256(b'["sha256:a","sha256:b"]').hexdigest()
    assert data_root(data("sha256:b", "sha256:a")) == f"sha256:{expected}"
    assert data_root(data("sha256:a", "sha256:b")) == f"sha256:{expected}"


def test_one_digest_stands_for_all_that_decides_a_run() -> None:
    assert manifest().digest() == manifest().digest()
    assert manifest(seed="1").digest() != manifest().digest()


def test_a_seed_beyond_what_json_can_hold_is_kept_exactly() -> None:
    large = manifest(seed=str(2**63 - 1))
    assert Manifest.model_validate_json(large.model_dump_json()).seed == str(2**63 - 1)
    assert len(large.digest()) == 64


def test_versions_are_those_of_this_process() -> None:
    found = manifest().environment
    assert set(found.libraries) == set(module.LIBRARIES)
    assert found.version == "0.1.0"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has not asked for its revision, and whose environment names none."""
    monkeypatch.delenv("EXPUNGE_REVISION", raising=False)
    revision.cache_clear()
    yield monkeypatch
    revision.cache_clear()


def test_the_environment_may_name_the_revision(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("EXPUNGE_REVISION", "v1-0-gabc")
    assert revision() == "v1-0-gabc"
    assert module.code() == "expunge 0.1.0, revision v1-0-gabc"


def test_code_that_runs_from_its_repository_has_the_repositorys_revision(
    fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "src" / "expunge" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    fresh.setattr(module.expunge, "__file__", str(package))
    assert revision() is None, "no repository"
    assert module.code() == "expunge 0.1.0"
    revision.cache_clear()
    git = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=True)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    git(["git", "init"])
    git(["git", "add", "."])
    git(["git", *author, "commit", "-m", "first"])
    head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
    assert revision() == head
    package.write_text("# changed")
    assert revision() == head, "asked once a process"
    revision.cache_clear()
    assert revision() == f"{head}-dirty"
