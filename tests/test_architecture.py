"""The one-way arrows between the packages, as pyproject.toml states them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_imports_run_one_way() -> None:
    done = run(LINTER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["expunge.api.app", "expunge.registry.objects"])
def test_the_api_starts_without_what_only_workers_need(module: str) -> None:
    libraries = ("torch", "celery", "redis", "kornia", "matplotlib", "opentelemetry.sdk")
    heavy = (*libraries, "expunge.worker")
    assert imported_by(module, heavy) == "[]"


def test_the_catalog_needs_pydantic_only() -> None:
    heavy = ("torch", "numpy", "sqlalchemy", "fastapi", "expunge.registry")
    assert imported_by("expunge.unlearning.catalog", heavy) == "[]"


def test_the_client_starts_without_the_service() -> None:
    heavy = ("torch", "celery", "sqlalchemy", "fastapi", "expunge.registry", "expunge.api")
    assert imported_by("expunge.client", heavy) == "[]"


def imported_by(module: str, heavy: tuple[str, ...]) -> str:
    """Which of the heavy modules a fresh interpreter has after importing the module, as text."""
    done = run(f"import sys, {module}; print([each for each in {heavy} if each in sys.modules])")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
