"""The images: well-formed, unprivileged, made of the pinned packages, and without PyTorch where it is not needed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docker.compose import DOCKERFILE, ROOT, last, stages

HADOLINT = Path(sys.executable).parent / "hadolint"
FINAL = ("service", "worker", "worker-cuda")
PARTS = ("requirements-service.txt", "requirements-worker.txt")
ONLY_WORKERS = ("torch", "torchvision", "sklearn", "open_clip", "optuna", "kornia", "lightly")
IN_THE_SERVICE_IMAGE = (
    "expunge.api.app",
    "expunge.registry.operations",
    "expunge.worker.__main__",
    "expunge.evidence.audit",
    "expunge.evidence.pictures.report",
    "expunge.cli",
)
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""


def pins(file: Path) -> dict[str, frozenset[str]]:
    """The hashes of every requirement of a lock file, by name, version and marker."""
    joined = file.read_text().replace("\\\n", "")
    found = {}
    for line in joined.splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        found[requirement.split(";")[0].strip()] = frozenset(hashes)
    return found


def test_the_dockerfile_has_no_known_fault() -> None:
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_base_images_are_pinned_to_a_release() -> None:
    bases = {parts[0][1].split(" AS ")[0] for parts in stages().values()} - stages().keys()
    assert bases == {"${PYTHON_IMAGE}"}
    assert re.search(
        r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+", DOCKERFILE.read_text(), re.MULTILINE
    )


@pytest.mark.parametrize("stage", FINAL)
def test_an_image_runs_as_nobody_in_particular(stage: str) -> None:
    assert last(stage, "USER") == "10001:10001"
    assert last(stage, "CMD")


@pytest.mark.parametrize("part", PARTS)
def test_packages_of_an_image_are_those_that_the_tests_run_with(part: str) -> None:
    whole = pins(ROOT / "requirements.txt")
    for requirement, hashes in pins(ROOT / "docker" / part).items():
        assert hashes
        assert hashes <= whole.get(requirement, frozenset()), f"{requirement}: run make lock"


def test_the_image_of_the_api_has_no_pytorch() -> None:
    names = {each.partition("==")[0] for each in pins(ROOT / "docker" / PARTS[0])}
    assert "fastapi" in names
    assert not {"torch", "torchvision", "scikit-learn", "open-clip-torch", "triton"} & names


def test_what_runs_in_it_starts_without() -> None:
    code = WITHOUT.format(missing=ONLY_WORKERS) + f"import {', '.join(IN_THE_SERVICE_IMAGE)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
