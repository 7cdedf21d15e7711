"""A party checks the log on its own machine, and finds out whatever the service or its database does to it."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from tests.api.conftest import settings, url  # noqa: F401 - fixtures
from typer.testing import CliRunner

from expunge.client import Client
from expunge.client import log as log_calls
from expunge.client.cli import build_app
from expunge.client.log import LogProof
from expunge.client.record import BrokenRecord, Memory, Seen, Verified, check_proof, verify
from expunge.evidence.signing import PublicKey, Signer
from expunge.registry import log, signing_keys
from expunge.registry.database import Sessions
from expunge.registry.parties import create_party, issue_key
from expunge.registry.record import sealing
from expunge.registry.tables import Role

FIRST = Signer(Ed25519PrivateKey.generate())
ROWS = 12
TABLES = ("log_unsealed", "log_leaves", "log_nodes", "tree_heads", "signing_keys", "log")

_numbers = itertools.count()


@dataclass
class Desk:
    """A party with a client, and the service's database beside it."""

    client: Client
    url: str
    secret: str
    party_id: str
    sessions: Sessions
    signer: Signer = FIRST

    def act(self, count: int = 1) -> None:
        with self.sessions.begin() as session:
            for number in range(count):
                log.append(session, self.party_id, "req_1", "noted", number=number)

    def seal(self) -> None:
        with self.sessions.begin() as session:
            while sealing.seal(session, self.signer, limit=5):
                pass

    def sealed(self, count: int = 1) -> None:
        self.act(count)
        self.seal()

    def tamper(self, *statements: str) -> None:
        with self.sessions.begin() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                session.execute(text(statement))

    def rewrite(self) -> None:
        """Change the oldest own row and seal everything anew, with the service's own key."""
        self.tamper(
            "UPDATE log SET event = 'never' WHERE seq = (SELECT min(seq) FROM log WHERE event = 'noted')",
            "DELETE FROM log_leaves",
            "DELETE FROM log_nodes",
            "DELETE FROM tree_heads",
            "INSERT INTO log_unsealed SELECT seq FROM log",
        )
        self.seal()

    def unsign(self) -> None:
        """As if there had never been a key."""
        self.tamper("UPDATE tree_heads SET envelope = NULL")

    def verify(self, since: Seen | None = None, key: PublicKey | None = None) -> Verified:
        return verify(self.client, since, key)

    def broken(self, since: Seen | None = None, key: PublicKey | None = None) -> str:
        with pytest.raises(BrokenRecord) as caught:
            self.verify(since, key)
        return str(caught.value)

    def run(self, *arguments: str) -> Result:
        env = {"COLUMNS": "200", "EXPUNGE_URL": self.url, "EXPUNGE_KEY": self.secret}
        return CliRunner(env=env).invoke(build_app(), ["log", *arguments])


@pytest.fixture
def desk(url: str, session_factory: Sessions) -> Iterator[Desk]:  # noqa: F811
    """A new log with a key, in which the party then has done a few things."""
    with session_factory.begin() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        for table in TABLES:
            session.execute(text("DELETE FROM " + table))  # noqa: S608
    with session_factory.begin() as session:
        signing_keys.admit(session, FIRST)
        party = create_party(session, f"party {next(_numbers)}", Role.DATA_OWNER, actor="test")
        secret = issue_key(session, party.id, expires_in_days=1, actor="test").secret
    assert secret is not None
    with Client(url, secret) as client:
        desk = Desk(client, url, secret, party.id, session_factory)
        desk.sealed(ROWS)
        yield desk


def test_all_own_rows_are_proven_and_the_next_head_continues_this_one(desk: Desk) -> None:
    first = desk.verify()
    assert (first.since, first.waiting, first.head.signed) == (None, 0, True)
    assert first.proven == ROWS + 3, "the party, its key and the signing key are read as well"
    desk.sealed(3)
    desk.act(2)
    second = desk.verify(first.seen)
    assert (second.proven, second.waiting) == (first.proven + 3, 2)
    assert second.seen.size == first.seen.size + 3
    assert desk.verify(second.seen).seen == second.seen, "nothing new is no break"


class TestTampering:
    """By whoever holds the database; found by the party alone."""

    def test_a_changed_row(self, desk: Desk) -> None:
        desk.tamper("UPDATE log SET detail = '{}' WHERE event = 'noted'")
        assert "its content is not what was sealed" in desk.broken()

    def test_a_changed_row_with_its_leaf_hash(self, desk: Desk) -> None:
        row = next(desk.client.log_rows("req_1"))
        changed = row.model_copy(update={"event": "never"}).evidence().leaf().hex()
        desk.tamper(
            f"UPDATE log SET event = 'never' WHERE seq = {row.seq}",  # noqa: S608
            f"UPDATE log_leaves SET leaf_hash = '\\x{changed}' WHERE seq = {row.seq}",  # noqa: S608
        )
        assert "its proof does not hold" in desk.broken()

    def test_swapped_leaves(self, desk: Desk) -> None:
        desk.tamper(
            "CREATE TEMPORARY TABLE swapped ON COMMIT DROP AS SELECT * FROM log_leaves",
            "DELETE FROM log_leaves",
            "INSERT INTO log_leaves SELECT CASE position WHEN 5 THEN 9 WHEN 9 THEN 5"
            " ELSE position END, seq, leaf_hash, chain_hash FROM swapped",
        )
        assert "its proof does not hold" in desk.broken()

    @pytest.mark.parametrize("column", ["root_hash", "chain_hash"])
    def test_a_changed_head(self, desk: Desk, column: str) -> None:
        desk.tamper(f"UPDATE tree_heads SET {column} = sha256({column})")  # noqa: S608
        assert "another one was signed" in desk.broken()

    def test_all_of_it_rewritten(self, desk: Desk) -> None:
        seen = desk.verify().seen
        desk.rewrite()
        assert desk.verify(), "whoever comes new cannot know"
        assert "there are two different logs" in desk.broken(seen)
        desk.sealed()
        assert "it was rewritten" in desk.broken(seen)

    def test_a_cut_tail(self, desk: Desk) -> None:
        desk.sealed()
        seen = desk.verify().seen
        desk.tamper(
            "DELETE FROM log WHERE seq = (SELECT max(seq) FROM log)",
            f"DELETE FROM log_leaves WHERE position = {seen.size - 1}",  # noqa: S608
            f"DELETE FROM tree_heads WHERE size = {seen.size}",  # noqa: S608
        )
        assert desk.verify(), "whoever comes new cannot know"
        assert "its tail was cut" in desk.broken(seen)


class TestKeys:
    """Whose signature is trusted."""

    def test_a_key_that_the_first_one_introduced_is_trusted(self, desk: Desk) -> None:
        seen = desk.verify().seen
        desk.signer = Signer(Ed25519PrivateKey.generate())
        with desk.sessions.begin() as session:
            signing_keys.rotate(session, FIRST, desk.signer)
        desk.seal()
        found = desk.verify(seen, desk.signer.public_key)
        assert found.seen.key == desk.signer.public_key.pem
        assert desk.verify(seen).seen.key == FIRST.public_key.pem, "the first stays the anchor"

    def test_a_key_that_nobody_introduced_is_not(self, desk: Desk) -> None:
        seen = desk.verify().seen
        stranger = Signer(Ed25519PrivateKey.generate())
        desk.signer = stranger
        desk.sealed()
        assert "not one to be accepted" in desk.broken(seen)
        assert "signing keys: no succession" in desk.broken(key=stranger.public_key)

    def test_signatures_that_stop_are_noticed(self, desk: Desk) -> None:
        seen = desk.verify().seen
        desk.unsign()
        assert "it is not signed" in desk.broken(seen)
        assert "it is not signed" in desk.broken(key=FIRST.public_key)
        assert not desk.verify().head.signed

    def test_signatures_that_begin_are_trusted_from_then_on(self, desk: Desk) -> None:
        desk.unsign()
        seen = desk.verify().seen
        assert seen.key is None
        desk.sealed()
        assert desk.verify(seen).seen.key == FIRST.public_key.pem


def test_hashes_that_are_none_are_no_traceback(desk: Desk) -> None:
    proof = desk.client.log_proof(next(desk.client.log_rows("req_1")).seq)
    for change in ({"root_hash": "x"}, {"envelope": {}}, {"envelope": None}):
        head = proof.head.model_copy(update=change)
        with pytest.raises(BrokenRecord, match="tree head of"):
            check_proof(
                proof.model_copy(update={"head": head}),
                desk.client.signing_keys(),
                FIRST.public_key,
            )


@pytest.mark.parametrize("path", [["x"], [None], None])
def test_a_growth_that_is_proven_by_no_hashes_is_no_traceback(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, path: Any
) -> None:
    seen = desk.verify().seen
    desk.sealed()
    honest = log_calls.get

    def lying(transport: Any, address: str, params: Any = None) -> Any:
        answer = honest(transport, address, params)
        return {"path": path} if address == "/log/consistency" else answer

    monkeypatch.setattr(log_calls, "get", lying)
    assert "consists of no hashes" in desk.broken(seen)


def test_a_proof_alone_is_enough_to_check_a_row(desk: Desk) -> None:
    keys = desk.client.signing_keys()
    row = next(desk.client.log_rows("req_1"))
    proof = desk.client.log_proof(row.seq)
    check_proof(proof, keys)
    check_proof(LogProof.model_validate_json(proof.model_dump_json()), keys, FIRST.public_key)
    for change in ({"event": "never"}, {"position": 0}, {"path": []}, {"path": None}):
        changed = proof.row.model_copy(update=change)
        with pytest.raises(BrokenRecord, match=f"row {row.seq}: "):
            check_proof(proof.model_copy(update={"row": changed}), keys)


class TestCommand:
    """`expunge log …`."""

    def test_verify_says_what_it_found_and_remembers_it(self, desk: Desk, tmp_path: Path) -> None:
        state = tmp_path / "state" / "heads.json"
        options = ("verify", "--whole", "--state", str(state))
        first = desk.run(*options)
        assert first.exit_code == 0, first.output
        assert "the first that you see" in first.output
        assert f"all {ROWS + 3} rows in order" in first.output
        desk.sealed()
        second = desk.run(*options)
        assert f"continues the log of {ROWS + 3} rows" in second.output
        found = json.loads(desk.run(*options, "--json").stdout)
        assert (found["ok"], found["since"], found["proven"]) == (True, ROWS + 4, ROWS + 4)

        desk.rewrite()
        before = state.read_bytes()
        broken = desk.run(*options)
        assert broken.exit_code == 1
        assert "broken: since the head of" in broken.output.replace("\n", " ")
        assert state.read_bytes() == before, "what was seen is not forgotten over it"

    def test_verify_reports_what_the_service_finds_in_others_rows(
        self, desk: Desk, tmp_path: Path
    ) -> None:
        with desk.sessions.begin() as session:
            log.append(session, "pty_other", "req_other", "noted")
        desk.seal()
        desk.tamper("UPDATE log SET event = 'never' WHERE actor = 'pty_other'")
        options = ("verify", "--state", str(tmp_path / "heads.json"))
        assert desk.run(*options).exit_code == 0
        result = desk.run(*options, "--whole")
        assert result.exit_code == 1
        assert "the service found row-changed at row" in result.output.replace("\n", " ")

    def test_verify_takes_a_key_to_trust(self, desk: Desk, tmp_path: Path) -> None:
        key, state = tmp_path / "key.pem", ("--state", str(tmp_path / "heads.json"))
        key.write_text(FIRST.public_key.pem)
        assert desk.run("verify", *state, "--signed-by", str(key)).exit_code == 0
        key.write_text(Signer(Ed25519PrivateKey.generate()).public_key.pem)
        assert desk.run("verify", *state, "--signed-by", str(key)).exit_code == 1
        key.write_text("no key")
        assert "no public key" in desk.run("verify", *state, "--signed-by", str(key)).output

    def test_rows_heads_and_proofs_are_shown(self, desk: Desk) -> None:
        listed = json.loads(desk.run("list", "--subject", "req_1", "--json").stdout)
        assert [row["detail"]["number"] for row in listed] == [*range(ROWS)]
        assert "noted" in desk.run("list").output
        head = json.loads(desk.run("head", "--json").stdout)
        assert head["size"] == ROWS + 3
        assert head["root_hash"] in desk.run("head").output
        proof = json.loads(desk.run("prove", str(listed[3]["seq"]), "--json").stdout)
        assert (proof["row"]["seq"], proof["head"]) == (listed[3]["seq"], head)
        assert "is at position" in desk.run("prove", str(listed[3]["seq"])).output
        assert desk.run("prove", "999").exit_code == 1


class TestMemory:
    """What was seen, kept in a small file."""

    SEEN = Seen(size=3, root_hash="00", at="2026-05-04T12:00:00.000000Z")

    def test_services_are_remembered_apart(self, tmp_path: Path) -> None:
        memory = Memory(tmp_path / "heads.json")
        assert memory.recall("http://a") is None
        memory.remember("http://a", self.SEEN)
        memory.remember("http://b", self.SEEN.model_copy(update={"size": 4}))
        assert memory.recall("http://a") == self.SEEN
        assert [each.name for each in tmp_path.iterdir()] == ["heads.json"]

    def test_the_default_is_the_users_folder_for_state(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        Memory().remember("http://a", self.SEEN)
        assert (tmp_path / "expunge" / "log-heads.json").exists()

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            '{"http://a": {"size": "x"}}',
            '{"http://a": 1}',
            '{"http://a": {"size": 1, "root_hash": "", "at": "", "key": "?"}}',
        ],
    )
    def test_a_damaged_file_is_said_to_be_so(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "heads.json"
        path.write_text(content)
        with pytest.raises(BrokenRecord, match="is damaged"):
            Memory(path).recall("http://a")
