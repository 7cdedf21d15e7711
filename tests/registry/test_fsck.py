"""What is inconsistent is found and told with what to do; what is sound is not accused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from sqlalchemy import Engine, text
from tests.registry.conftest import House
from tests.registry.keeping import Service, running
from typer.testing import CliRunner

from expunge.cli import app as expunge
from expunge.evidence.signing import Signer
from expunge.registry import commands, fsck, signing_keys
from expunge.registry.fsck import ADVICE, Check, Finding
from expunge.registry.settings import Settings


@pytest.fixture
def service(house: House, tmp_path: Path) -> Iterator[Service]:
    yield from running(house, tmp_path)


def settings(service: Service, **changes: Any) -> Settings:
    return Settings(
        database_url=service.engine.url.render_as_string(hide_password=False),
        object_store=(service.folder / "objects").as_uri(),
        **changes,
    )


def found(service: Service, *, deep: bool = False, **changes: Any) -> list[Finding]:
    return fsck.check(
        settings(service, **changes), service.engine, service.store, deep=deep
    ).findings


def broken(service: Service, *, deep: bool = False, **changes: Any) -> list[tuple[Check, str]]:
    return [(e.check, e.words) for e in found(service, deep=deep, **changes) if e.broken]


def tamper(service: Service, statement: str) -> None:
    """As somebody does who can write to the database past the service."""
    with service.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(statement))


def test_a_service_at_work_is_consistent(service: Service) -> None:
    report = fsck.check(settings(service), service.engine, service.store, deep=True)
    assert report.is_consistent
    assert {each.check for each in report.findings} == {Check.SIGNING_KEY, Check.BACKUPS}
    assert (report.jobs, report.requests) == (3, 1)
    assert report.log_leaves > 0


def test_a_note_says_when_backups_are_kept_without_a_limit(service: Service) -> None:
    service.backup()
    (kept,) = (each.words for each in found(service) if each.check == Check.BACKUPS)
    assert "nothing says for how long" in kept
    assert Check.BACKUPS not in {each.check for each in found(service, backup_retention_days=30)}


def test_objects_that_are_lost_cut_or_rotten(service: Service) -> None:
    lost, rotten = (service.key_of(each) for each in service.sets)
    (weights,) = filter(service.size_of, service.store.keys())
    service.store.delete(lost)
    path = service.folder / "objects" / rotten
    path.write_bytes(b"x" * path.stat().st_size)
    cut = service.folder / "objects" / weights
    cut.write_bytes(cut.read_bytes()[:3])
    shallow = [words for check, words in broken(service) if check == Check.OBJECTS]
    assert [lost in shallow[0], f"{weights} has 3 bytes" in shallow[1]] == [True, True]
    deep = " ".join(words for _, words in broken(service, deep=True))
    assert all(key in deep for key in (lost, rotten, weights))


def test_objects_that_nothing_names_are_noted_and_those_on_their_way_are_not(
    service: Service,
) -> None:
    service.put("on its way")
    stray = service.folder / "objects" / "sha256" / "00" / ("0" * 64)
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"")
    (orphan,) = (each for each in found(service) if each.check == Check.ORPHANS)
    assert not orphan.broken
    assert "1 objects" in orphan.words
    assert "0" * 64 in orphan.words


def test_rows_that_were_changed_past_the_service(service: Service) -> None:
    changes = {
        "UPDATE jobs SET state = 'failed', lease_token = NULL WHERE state = 'running'": "is failed without a reason",
        "UPDATE checkpoints SET state = 'invalid'": "as head: invalid",
        "UPDATE log SET actor = 'x' WHERE seq = (SELECT min(seq) FROM log_leaves)": "row-changed",
    }
    for change, words in changes.items():
        tamper(service, change)
        assert words in " ".join(found for _, found in broken(service)), change


def test_a_queue_that_nobody_works_on_is_noted(service: Service) -> None:
    tamper(
        service,
        "UPDATE jobs SET due_at = now() - interval '1 hour', published_at = NULL, "
        "lease_expires_at = lease_expires_at - interval '1 hour'",
    )
    told = [each for each in found(service) if each.check == Check.QUEUE]
    assert len(told) == 2
    assert not any(each.broken for each in told)


def test_a_signing_key_that_is_not_the_services(service: Service, tmp_path: Path) -> None:
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    signer = Signer.create(own)
    Signer.create(other)
    with service.sessions.begin() as session:
        signing_keys.admit(session, signer)
    assert Check.SIGNING_KEY not in {
        each.check for each in found(service, signing_key_file=str(own))
    }
    (wrong,) = broken(service, signing_key_file=str(other))
    assert wrong[0] == Check.SIGNING_KEY
    (missing,) = broken(service, signing_key_file=str(tmp_path / "none"))
    assert missing[0] == Check.SIGNING_KEY


def test_every_check_says_what_to_do() -> None:
    assert set(ADVICE) == set(Check)


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def environment(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        of = settings(service)
        monkeypatch.setenv("EXPUNGE_DATABASE_URL", of.database_url)
        monkeypatch.setenv("EXPUNGE_OBJECT_STORE", of.object_store)

    def call(self, *arguments: str) -> Result:
        app = typer.Typer()
        commands.add_to(app)
        return CliRunner().invoke(app, arguments)

    def test_a_backup_is_taken_checked_and_not_restored_over_rows(self, service: Service) -> None:
        folder = str(service.kept)
        taken = self.call("backup", folder)
        assert taken.exit_code == 0, taken.output
        told = json.loads(taken.stdout)
        assert told["objects"] == told["copied"] > 0
        noted = self.call("backup", folder, "--endings-only")
        assert (noted.exit_code, json.loads(noted.stdout)["datasets"]) == (0, 0)
        refused = self.call("restore", folder)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "not empty" in refused.stderr

    def test_a_folder_that_cannot_be_written_is_told_as_refused(self, service: Service) -> None:
        folder = service.folder / "a file"
        folder.touch()
        refused = self.call("backup", str(folder / "backups"))
        assert refused.exit_code == 2
        assert "a file" in refused.stderr

    def test_settings_that_are_missing_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("EXPUNGE_OBJECT_STORE")
        refused = self.call("fsck")
        assert refused.exit_code == 2
        assert "object_store" in refused.stderr

    def test_fsck_tells_people_and_programs_and_its_status_says_whether_to_act(
        self, service: Service
    ) -> None:
        sound = self.call("fsck")
        assert sound.exit_code == 0, sound.output
        assert "consistent: 3 jobs, 1 requests" in sound.stdout
        service.backup()
        lost = service.key_of(service.sets[0])
        service.store.delete(lost)
        found = self.call("fsck", "--json")
        assert found.exit_code == 1
        (finding,) = (each for each in json.loads(found.stdout)["findings"] if each["broken"])
        assert (finding["check"], lost in finding["words"]) == ("objects", True)
        put = self.call("restore", str(service.kept), "--objects-only")
        assert (put.exit_code, json.loads(put.stdout)) == (0, {"objects_put": 1, "damaged": []})
        assert self.call("fsck", "--deep").exit_code == 0

    def test_fsck_is_given_the_time_that_large_databases_take(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = []

        def look(_settings: Settings, engine: Engine, *_: Any, **__: Any) -> fsck.Report:
            with engine.connect() as connection:
                given.append(connection.scalar(text("SHOW statement_timeout")))
            return fsck.Report([], 0, 0, 0, deep=False)

        monkeypatch.setattr(fsck, "check", look)
        assert self.call("fsck").exit_code == 0
        assert given == [fsck.STATEMENT_TIMEOUT]

    def test_they_are_commands_of_expunge(self) -> None:
        shown = CliRunner(env={"COLUMNS": "200"}).invoke(expunge, ["--help"]).stdout
        assert all(f"{name} " in shown for name in ("migrate", "backup", "restore", "fsck"))
