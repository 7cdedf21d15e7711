"""The dispatcher's sealer signs heads with the key in use, and seals without one."""

from pathlib import Path

import pytest
from sqlalchemy import text

from expunge.evidence.heads import opened
from expunge.evidence.signing import Signer
from expunge.registry import log, signing_keys
from expunge.registry.database import Sessions
from expunge.registry.record import checking, proofs
from expunge.registry.settings import Settings
from expunge.registry.signing_keys import NoSigningKey
from expunge.registry.tables import TreeHead
from expunge.worker.sealer import Sealer


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url, object_store=tmp_path.as_uri(), work_dir=tmp_path / "work"
    )


def keyed(settings: Settings, path: Path) -> Settings:
    return settings.model_copy(update={"signing_key_file": str(path)})


def noted(sessions: Sessions) -> None:
    with sessions.begin() as session:
        log.append(session, "pty_1", "req_1", "noted")


def sealed(settings: Settings, sessions: Sessions) -> TreeHead:
    noted(sessions)
    assert Sealer(settings, sessions).step() > 0
    with sessions() as session:
        return proofs.head_of(session)


def test_heads_are_signed_with_the_key_in_use_and_wait_for_it(
    settings: Settings, session_factory: Sessions, tmp_path: Path
) -> None:
    unsigned = sealed(settings, session_factory)
    assert unsigned.envelope is None

    first = Signer.create(tmp_path / "first.pem")
    head = sealed(keyed(settings, tmp_path / "first.pem"), session_factory)
    assert opened(head.envelope, [first.public_key]) == proofs.stated(head)
    assert head.size == unsigned.size + 2, "the key's own row is sealed with the first"

    second = Signer.create(tmp_path / "second.pem")
    with session_factory.begin() as session:
        signing_keys.rotate(session, first, second)
    with session_factory() as session, pytest.raises(NoSigningKey, match="was given none"):
        signing_keys.current(session, settings)
    for name in ("first.pem", "missing.pem"):
        assert Sealer(keyed(settings, tmp_path / name), session_factory).step() == 0
    assert Sealer(settings, session_factory).step() == 0, "a key is in use"
    head = sealed(keyed(settings, tmp_path / "second.pem"), session_factory)
    assert opened(head.envelope, [second.public_key]) == proofs.stated(head)
    with session_factory() as session:
        found = checking.check(session, signing_keys.public_keys(session))
    assert (found.broken, found.unsigned_heads) == (None, 1)


def test_without_new_rows_there_is_no_new_head(
    settings: Settings, session_factory: Sessions, tmp_path: Path
) -> None:
    path = tmp_path / "key.pem"
    with session_factory.begin() as session:
        session.execute(text("DELETE FROM signing_keys"))
    Signer.create(path)
    head = sealed(keyed(settings, path), session_factory)
    assert Sealer(keyed(settings, path), session_factory).step() == 0
    with session_factory() as session:
        assert proofs.head_of(session).size == head.size
