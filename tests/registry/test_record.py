"""The log is sealed row by row, and whatever is done to it afterwards is noticed."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from alembic import command
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Engine, func, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker
from tests.conftest import execute, text_of

from expunge.evidence.chain import GENESIS, link
from expunge.evidence.heads import opened
from expunge.evidence.merkle import (
    BadProof,
    Frontier,
    check_consistency,
    check_inclusion,
)
from expunge.evidence.signing import Signer
from expunge.registry import log
from expunge.registry.database import Sessions, connect, sessions
from expunge.registry.errors import Invalid
from expunge.registry.migration import configuration, migrate
from expunge.registry.record import checking, proofs, sealing
from expunge.registry.record.checking import Checked, Link
from expunge.registry.tables import LogLeaf, LogNode, LogRow, TreeHead, UnsealedRow
from expunge.registry.vitals import Vitals

SIGNER = Signer(Ed25519PrivateKey.generate())


@dataclass
class Ledger:
    """The log of one database, and shortcuts to seal and check it."""

    sessions: Sessions

    def write(self, count: int, *, about: str = "req_1") -> None:
        with self.sessions.begin() as session:
            for number in range(count):
                log.append(session, "pty_1", about, "noted", number=number, share=number / 7)

    def seal(self, limit: int = sealing.BATCH, signer: Signer | None = SIGNER) -> int:
        with self.sessions.begin() as session:
            return sealing.seal(session, signer, limit=limit)

    def check(self, part: int = 7) -> Checked:
        """All parts of a check, one after the other; the first that is broken, or the last."""
        start = 0
        while True:
            with self.sessions() as session:
                found = checking.check(session, [SIGNER.public_key], start=start, limit=part)
            if found.broken or found.end == found.size:
                return found
            start = found.end

    def broken(self) -> tuple[Link, int | None]:
        """What is broken, and where: a position, or else a row's number or a head's size."""
        broken = self.check().broken
        assert broken is not None
        place = next(
            (each for each in (broken.position, broken.seq, broken.size) if each is not None), None
        )
        return broken.link, place

    def tamper(self, *statements: str, **values: int) -> None:
        """As the database's superuser, past all triggers."""
        self.run("SET LOCAL session_replication_role = replica", *statements, **values)

    def run(self, *statements: str, **values: int) -> None:
        with self.sessions.begin() as session:
            for statement in statements:
                wanted = {name: each for name, each in values.items() if f":{name}" in statement}
                session.execute(text(statement), wanted)

    def head(self, size: int | None = None) -> TreeHead:
        with self.sessions() as session:
            return proofs.head_of(session, size)

    def seq(self, position: int) -> int:
        with self.sessions() as session:
            return session.get_one(LogLeaf, position).seq


@pytest.fixture(scope="module")
def sealed(session_factory: Sessions) -> Ledger:
    """A log that holds 30 sealed rows under three signed heads."""
    found = Ledger(session_factory)
    found.write(30)
    while found.seal(limit=11):
        pass
    return found


@pytest.fixture
def ledger(sealed: Ledger, engine: Engine) -> Iterator[Ledger]:
    """The sealed log in a transaction that is rolled back, so that it may be tampered with."""
    assert sealed
    with engine.connect() as connection, connection.begin() as transaction:
        yield Ledger(sessionmaker(connection, join_transaction_mode="create_savepoint"))
        transaction.rollback()


@pytest.fixture(scope="module")
def shared(postgres: URL) -> Iterator[Ledger]:
    """A log that several connections write to and seal."""
    execute(postgres, "CREATE DATABASE shared_ledger TEMPLATE template_expunge")
    engine = connect(text_of(postgres.set(database="shared_ledger")))
    yield Ledger(sessions(engine))
    engine.dispose()
    execute(postgres, "DROP DATABASE shared_ledger WITH (FORCE)")


def test_what_is_sealed_holds(ledger: Ledger) -> None:
    found = ledger.check()
    assert (found.broken, found.size, found.unsigned_heads) == (None, 30, 0)
    with ledger.sessions() as session:
        leaves = session.scalars(select(LogLeaf).order_by(LogLeaf.position)).all()
        rows = session.scalars(select(LogRow).order_by(LogRow.seq)).all()
        heads = session.scalars(select(TreeHead).order_by(TreeHead.size)).all()
        assert session.scalar(select(func.count()).select_from(UnsealedRow)) == 0
    frontier, chained = Frontier(0, []), GENESIS
    for leaf, row in zip(leaves, rows, strict=True):
        frontier.append(log.as_evidence(row).leaf())
        chained = link(chained, leaf.leaf_hash)
    assert (heads[-1].root_hash, heads[-1].chain_hash) == (frontier.root, chained)
    assert [head.size for head in heads] == [11, 22, 30]
    for head in heads:
        assert opened(head.envelope, [SIGNER.public_key]) == proofs.stated(head)


def test_every_row_is_proven_against_every_head_after_it(ledger: Ledger) -> None:
    with ledger.sessions() as session:
        for head in session.scalars(select(TreeHead)).all():
            paths = proofs.inclusion(session, range(head.size), head.size)
            for leaf in session.scalars(select(LogLeaf).where(LogLeaf.position < head.size)):
                path = paths[leaf.position]
                check_inclusion(leaf.leaf_hash, leaf.position, head.size, path, head.root_hash)


def test_every_head_continues_those_before_it(ledger: Ledger) -> None:
    with ledger.sessions() as session:
        heads = session.scalars(select(TreeHead).order_by(TreeHead.size)).all()
        for old in heads:
            for new in heads[heads.index(old) :]:
                path = proofs.consistency(session, old.size, new.size)
                check_consistency(old.size, new.size, old.root_hash, new.root_hash, path)
        with pytest.raises(Invalid, match="1 to 30"):
            proofs.consistency(session, 30, 31)


def test_without_a_key_heads_are_counted_as_unsigned(ledger: Ledger) -> None:
    rewrite(ledger, None)
    assert ledger.head().envelope is None
    found = ledger.check(part=100)
    assert (found.broken, found.unsigned_heads) == (None, 1)


def test_after_a_signed_head_none_is_made_unsigned(ledger: Ledger) -> None:
    ledger.write(1)
    assert ledger.seal(signer=None) == 0
    assert ledger.seal() == 1


@pytest.mark.parametrize("table", ["log", "log_leaves", "log_nodes", "tree_heads"])
@pytest.mark.parametrize("statement", ["DELETE FROM {0}", "TRUNCATE {0}", "UPDATE {0} SET {1}"])
def test_the_database_refuses_to_change_the_record(
    ledger: Ledger, table: str, statement: str
) -> None:
    columns = {"log": "salt", "log_leaves": "seq", "log_nodes": "hash", "tree_heads": "size"}
    change = statement.format(table, f"{columns[table]} = {columns[table]}")
    with pytest.raises(DBAPIError, match="append-only"):
        ledger.run(change)
    assert ledger.check().broken is None


class TestTampering:
    """By whoever holds the database and can switch its triggers off."""

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE log SET actor = 'pty_2' WHERE seq = :seq",
            "UPDATE log SET subject_id = 'req_2' WHERE seq = :seq",
            "UPDATE log SET event = 'denied' WHERE seq = :seq",
            "UPDATE log SET at = at + interval '1 microsecond' WHERE seq = :seq",
            "UPDATE log SET salt = gen_random_uuid() WHERE seq = :seq",
            "UPDATE log SET detail = jsonb_set(detail, '{number}', '13') WHERE seq = :seq",
            "UPDATE log SET detail = '{\"number\": 1e400}' WHERE seq = :seq",
        ],
    )
    def test_a_changed_row(self, ledger: Ledger, change: str) -> None:
        ledger.tamper(change, seq=ledger.seq(12))
        assert ledger.broken() == (Link.ROW_CHANGED, 12)

    def test_a_deleted_row(self, ledger: Ledger) -> None:
        ledger.tamper("DELETE FROM log WHERE seq = :seq", seq=ledger.seq(12))
        assert ledger.broken() == (Link.ROW_MISSING, 12)

    def test_a_deleted_row_with_its_leaf(self, ledger: Ledger) -> None:
        ledger.tamper(
            "DELETE FROM log WHERE seq = :seq",
            "DELETE FROM log_leaves WHERE position = 12",
            seq=ledger.seq(12),
        )
        assert ledger.broken() == (Link.LEAF_MISSING, 12)

    def test_swapped_rows(self, ledger: Ledger) -> None:
        ledger.tamper(
            "CREATE TEMPORARY TABLE swapped AS SELECT * FROM log",
            "UPDATE log SET (at, detail, salt) = (SELECT at, detail, salt FROM swapped"
            " WHERE seq = :a + :b - log.seq) WHERE seq IN (:a, :b)",
            a=ledger.seq(5),
            b=ledger.seq(25),
        )
        assert ledger.broken() == (Link.ROW_CHANGED, 5)

    def test_swapped_leaves(self, ledger: Ledger) -> None:
        ledger.tamper(
            "ALTER TABLE log_leaves DROP CONSTRAINT uq_log_leaves_seq",
            "CREATE TEMPORARY TABLE swapped AS SELECT * FROM log_leaves",
            "UPDATE log_leaves SET (seq, leaf_hash) = (SELECT seq, leaf_hash FROM swapped"
            " WHERE position = 30 - log_leaves.position) WHERE position IN (5, 25)",
        )
        assert ledger.broken() == (Link.CHAIN_BROKEN, 5)

    def test_an_inserted_row(self, ledger: Ledger) -> None:
        ledger.tamper(
            "INSERT INTO log (actor, subject_id, event, detail) VALUES ('a', 'b', 'c', '{}')"
        )
        link, seq = ledger.broken()
        assert link == Link.ROW_UNACCOUNTED
        assert seq is not None
        assert seq > ledger.seq(29)

    @pytest.mark.parametrize("position", [0, 6, 12, 29])
    def test_a_row_whose_leaf_was_never_made(self, ledger: Ledger, position: int) -> None:
        # Leaves in reverse: numbers and positions differ in order.
        ledger.tamper("DELETE FROM log_leaves", "DELETE FROM log_nodes", "DELETE FROM tree_heads")
        seqs = [seq for seq in self.numbers(ledger) if seq != self.numbers(ledger)[position]]
        for start in (20, 10, 0):
            for seq in seqs[start : start + 10]:
                ledger.run("INSERT INTO log_unsealed VALUES (:seq)", seq=seq)
            ledger.seal()
        assert ledger.broken() == (Link.ROW_UNACCOUNTED, self.numbers(ledger)[position])

    @staticmethod
    def numbers(ledger: Ledger) -> list[int]:
        with ledger.sessions() as session:
            return [*session.scalars(select(LogRow.seq).order_by(LogRow.seq))]

    @pytest.mark.parametrize("size", [22, 30])
    def test_a_head_without_its_signature(self, ledger: Ledger, size: int) -> None:
        ledger.tamper("UPDATE tree_heads SET envelope = NULL WHERE size = :size", size=size)
        assert ledger.broken() == (Link.SIGNATURE_BROKEN, size)

    def test_a_cut_tail_of_leaves(self, ledger: Ledger) -> None:
        ledger.tamper(
            "DELETE FROM log WHERE seq >= :seq",
            "DELETE FROM log_leaves WHERE position >= 28",
            seq=ledger.seq(28),
        )
        assert ledger.broken() == (Link.TAIL_CUT, 28)

    def test_a_deleted_head(self, ledger: Ledger) -> None:
        ledger.tamper("DELETE FROM tree_heads WHERE size = 30")
        assert ledger.broken() == (Link.HEAD_MISSING, 22)

    def test_a_changed_subtree(self, ledger: Ledger) -> None:
        ledger.tamper("UPDATE log_nodes SET hash = sha256(hash) WHERE level = 2 AND number = 3")
        assert ledger.broken() == (Link.TREE_BROKEN, 15)

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE tree_heads SET root_hash = sha256(root_hash) WHERE size = 22",
            "UPDATE tree_heads SET chain_hash = sha256(chain_hash) WHERE size = 22",
        ],
    )
    def test_a_changed_head(self, ledger: Ledger, change: str) -> None:
        ledger.tamper(change)
        assert ledger.broken() == (Link.HEAD_BROKEN, 22)

    def test_a_head_with_another_date(self, ledger: Ledger) -> None:
        ledger.tamper("UPDATE tree_heads SET created_at = now() WHERE size = 22")
        assert ledger.broken() == (Link.SIGNATURE_BROKEN, 22)

    def test_a_head_signed_by_another_key(self, ledger: Ledger) -> None:
        rewrite(ledger, Signer(Ed25519PrivateKey.generate()))
        assert ledger.broken() == (Link.SIGNATURE_BROKEN, 30)

    @pytest.mark.parametrize("signer", [None, SIGNER])
    def test_all_of_it_rewritten_consistently_is_found_with_an_earlier_head(
        self, ledger: Ledger, signer: Signer | None
    ) -> None:
        seen = ledger.head(22)
        rewrite(ledger, signer)
        assert ledger.check().broken is None, "the service alone cannot know"
        with ledger.sessions() as session:
            new = proofs.head_of(session)
            path = proofs.consistency(session, seen.size, new.size)
        with pytest.raises(BadProof, match="rewritten"):
            check_consistency(seen.size, new.size, seen.root_hash, new.root_hash, path)

    def test_a_tail_cut_with_its_heads_is_found_with_an_earlier_head(self, ledger: Ledger) -> None:
        seen = ledger.head()
        ledger.tamper(
            "DELETE FROM log WHERE seq >= :seq",
            "DELETE FROM log_leaves WHERE position >= 22",
            "DELETE FROM tree_heads WHERE size > 22",
            seq=ledger.seq(22),
        )
        assert ledger.check().broken is None, "the service alone cannot know"
        new = ledger.head()
        with pytest.raises(BadProof, match="tail was cut"):
            check_consistency(seen.size, new.size, seen.root_hash, new.root_hash, [])


def rewrite(ledger: Ledger, signer: Signer | None) -> None:
    """Change a row of the first batch and seal everything anew."""
    ledger.tamper(
        "UPDATE log SET event = 'never' WHERE seq = :seq",
        "DELETE FROM log_leaves",
        "DELETE FROM log_nodes",
        "DELETE FROM tree_heads",
        "INSERT INTO log_unsealed SELECT seq FROM log",
        seq=ledger.seq(3),
    )
    assert ledger.seal(signer=signer) == 30


def test_a_row_that_is_committed_late_is_sealed_late(shared: Ledger) -> None:
    with shared.sessions.begin() as slow:
        log.append(slow, "pty_1", "req_1", "late")
        slow.flush()
        shared.write(2)
        assert shared.seal() == 2
    assert shared.seal() == 1
    with shared.sessions() as session:
        ordered = select(LogLeaf.seq).order_by(LogLeaf.position.desc()).limit(3)
        last, *before = session.scalars(ordered)
    assert last < min(before), "the sequence's order is not that of commits"
    assert shared.check().broken is None


def test_rolled_back_rows_leave_nothing_to_seal(ledger: Ledger) -> None:
    with ledger.sessions() as session:
        log.append(session, "pty_1", "req_1", "undone")
        session.flush()
        session.rollback()
    assert ledger.seal() == 0


def test_many_writers_and_sealers_leave_no_row_out_and_make_no_fork(shared: Ledger) -> None:
    with shared.sessions() as session:
        before = session.scalar(select(func.count()).select_from(LogRow)) or 0
    writers = [threading.Thread(target=write_singly, args=(shared, 25)) for _ in range(4)]
    over = threading.Event()

    def keep_sealing() -> None:
        while not over.is_set():
            shared.seal(limit=9)

    sealers = [threading.Thread(target=keep_sealing) for _ in range(3)]
    for thread in [*writers, *sealers]:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    for thread in sealers:
        thread.join()
    while shared.seal():
        pass
    found = shared.check(part=1000)
    assert (found.broken, found.size) == (None, before + 100)
    with shared.sessions() as session:
        assert set(session.scalars(select(LogRow.seq))) == set(session.scalars(select(LogLeaf.seq)))
        positions = session.scalars(select(LogLeaf.position).order_by(LogLeaf.position)).all()
    assert positions == [*range(before + 100)]


def write_singly(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        ledger.write(1)


def test_while_one_seals_another_has_nothing_to_do(shared: Ledger) -> None:
    shared.write(1)
    with shared.sessions.begin() as session:
        assert sealing.seal(session, SIGNER) == 1
        assert shared.seal() == 0
    assert shared.check(part=1000).broken is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, 1e300, "\0", {1: 2}])
def test_what_could_not_be_sealed_is_not_appended(ledger: Ledger, value: Any) -> None:
    with ledger.sessions() as session, pytest.raises(ValueError, match=r"number|NUL|key|exceeds"):
        log.append(session, "pty_1", "req_1", "noted", value=value)


def test_rows_that_no_seal_fits_hold_up_no_other_however_many_and_are_named(
    ledger: Ledger,
) -> None:
    ledger.run(
        "INSERT INTO log (actor, subject_id, event, detail)"
        " SELECT 'a', 'b', 'c', '{\"x\": 1e400}' FROM generate_series(1, 25)"
    )
    ledger.write(2)
    assert ledger.seal(limit=10) == 2
    with ledger.sessions() as session:
        assert not sealing.is_due(session), "they are not looked at again"
        first = session.scalar(select(func.min(UnsealedRow.seq)))
    assert ledger.broken() == (Link.ROW_UNACCOUNTED, first)
    told = {each.name: each.samples for each in Vitals(ledger.sessions).collect()}
    counted = [told[f"expunge_log_{each}_rows"][0].value for each in ("refused", "unsealed")]
    assert counted == [25, 0], "they do not wait: no seal is late"
    ledger.write(1)
    assert ledger.seal() == 1


def test_the_rows_of_an_older_database_are_sealed(postgres: URL) -> None:
    execute(postgres, "CREATE DATABASE older")
    engine = connect(text_of(postgres.set(database="older")))
    command.upgrade(configuration(text_of(engine.url)), "0003")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO log (actor, subject_id, event, detail)"
                " SELECT 'a', 'b', 'c', '{}' FROM generate_series(1, 20)"
            )
        )
    migrate(text_of(engine.url))
    ledger = Ledger(sessions(engine))
    assert ledger.seal() == 20
    found = ledger.check()
    assert (found.broken, found.size) == (None, 20)
    with ledger.sessions() as session:
        assert session.scalar(select(func.count(LogRow.salt.distinct()))) == 20
        assert session.scalar(select(func.count()).select_from(LogNode)) == 18
    engine.dispose()
    execute(postgres, "DROP DATABASE older WITH (FORCE)")
