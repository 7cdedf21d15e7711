"""Signing keys of the service: the first is taken up by itself, each further one is introduced by the one before."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from expunge.evidence.signing import PublicKey, Signer
from expunge.evidence.succession import follow
from expunge.registry import signing_keys
from expunge.registry.database import Sessions
from expunge.registry.settings import Settings
from expunge.registry.signing_keys import NoSigningKey
from expunge.registry.tables import SigningKey


@pytest.fixture
def session(session_factory: Sessions) -> Iterator[Session]:
    """A transaction that leaves nothing behind."""
    with session_factory() as session:
        yield session
        session.rollback()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three key files."""
    paths = [tmp_path / f"key-{number}.pem" for number in range(3)]
    for path in paths:
        Signer.create(path)
    return paths


def settings(database_url: str, key: Path | None) -> Settings:
    return Settings(
        database_url=database_url,
        object_store="file:///unused",
        signing_key_file="" if key is None else str(key),
    )


def test_the_first_key_is_taken_up_and_stays(
    session: Session, database_url: str, files: list[Path]
) -> None:
    for _ in range(2):
        signer = signing_keys.required(session, settings(database_url, files[0]))
    assert signing_keys.public_keys(session) == [signer.public_key]
    logged = session.execute(text("SELECT event, subject_id FROM log")).all()
    assert logged == [("signing-key-introduced", signer.key_id)]


def test_without_a_key_file_nothing_is_signed(session: Session, database_url: str) -> None:
    assert signing_keys.load(settings(database_url, None)) is None
    with pytest.raises(NoSigningKey, match="has no signing key"):
        signing_keys.required(session, settings(database_url, None))


def test_a_key_file_that_others_can_read_is_not_used_and_the_answer_names_no_path(
    session: Session, database_url: str, files: list[Path]
) -> None:
    files[0].chmod(0o644)
    with pytest.raises(NoSigningKey) as refused:
        signing_keys.required(session, settings(database_url, files[0]))
    assert str(files[0]) not in refused.value.detail


def test_a_key_that_nobody_introduced_cannot_sign(
    session: Session, database_url: str, files: list[Path]
) -> None:
    signing_keys.required(session, settings(database_url, files[0]))
    with pytest.raises(NoSigningKey, match="not introduced"):
        signing_keys.required(session, settings(database_url, files[1]))


def test_rotating_twice_leads_from_the_first_key_to_the_last(
    session: Session, database_url: str, files: list[Path]
) -> None:
    signers = [Signer.load(path) for path in files]
    for old, new in pairwise(signers):
        signing_keys.rotate(session, old, new)
    rows = signing_keys.every(session)
    assert [row.id for row in rows] == [each.key_id for each in signers]
    assert [row.retired_at is None for row in rows] == [False, False, True]
    trusted = follow(signers[0].public_key, signing_keys.known(rows))
    assert trusted == [each.public_key for each in signers]
    assert signing_keys.required(session, settings(database_url, files[2])).key_id == rows[2].id
    for retired in files[:2]:
        with pytest.raises(NoSigningKey, match="was retired"):
            signing_keys.required(session, settings(database_url, retired))


def test_only_the_key_in_use_introduces_another_and_none_comes_back(
    session: Session, files: list[Path]
) -> None:
    first, second, third = (Signer.load(path) for path in files)
    signing_keys.rotate(session, first, second)
    with pytest.raises(NoSigningKey, match="was retired"):
        signing_keys.rotate(session, first, third)
    with pytest.raises(NoSigningKey, match="not introduced"):
        signing_keys.rotate(session, third, first)
    with pytest.raises(NoSigningKey, match="in use before"):
        signing_keys.rotate(session, second, first)


def test_the_database_holds_one_key_in_use(session: Session) -> None:
    session.add_all(SigningKey(id=name, pem="") for name in "ab")
    with pytest.raises(IntegrityError, match="uq_signing_keys_retired_at"):
        session.flush()


def test_an_operator_makes_and_changes_the_key_on_the_command_line(
    database_url: str, session_factory: Sessions, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.pem", tmp_path / "new.pem"
    environment = os.environ | {
        "EXPUNGE_DATABASE_URL": database_url,
        "EXPUNGE_OBJECT_STORE": "file:///unused",
        "EXPUNGE_SIGNING_KEY_FILE": str(old),
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "expunge.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert command("new-signing-key", str(old)).returncode == 0
    Signer.create(new)
    again = command("new-signing-key", str(old))
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert command("rotate-signing-key", "--new", str(new)).returncode == 0
    repeated = command("rotate-signing-key", "--new", str(new))
    assert repeated.returncode == 2
    assert "was retired" in repeated.stderr
    with session_factory() as session:
        found = signing_keys.public_keys(session)
    assert found == [PublicKey.from_pem(Signer.load(each).public_key.pem) for each in (old, new)]
