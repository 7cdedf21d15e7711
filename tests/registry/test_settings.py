"""Settings come from the environment and from files; the environment wins."""

from pathlib import Path

import pytest

from expunge.registry.settings import SECRETS_DIR, Settings


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the environment names, with what a service needs at least."""
    (tmp_path / "expunge_database_url").write_text("postgresql+psycopg://app:s3cret@db/expunge\n")
    (tmp_path / "expunge_object_store").write_text("s3://expunge")
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    return tmp_path


def test_files_give_what_the_environment_does_not(secrets: Path) -> None:
    (secrets / "expunge_s3_secret_key").write_text("key of the store\n")
    settings = Settings()
    assert settings.database_url == "postgresql+psycopg://app:s3cret@db/expunge"
    assert settings.s3_secret_key.get_secret_value() == "key of the store"
    assert "key of the store" not in repr(settings)


def test_the_environment_comes_before_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_OBJECT_STORE", "file:///objects")
    assert Settings().object_store == "file:///objects"


def test_other_files_of_the_folder_do_no_harm(secrets: Path) -> None:
    (secrets / "postgres_password").write_text("for the server")
    assert Settings().object_store == "s3://expunge"


def test_a_folder_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="which is no folder"):
        Settings(database_url="postgresql://", object_store="file:///objects")
