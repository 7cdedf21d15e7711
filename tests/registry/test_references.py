"""Which rows name an object is looked up by its key: no look at every row, however many there are."""

from hashlib import sha256

import pytest
from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.orm import Session

from expunge.registry import references
from expunge.registry.references import COLUMNS

FILL = """
SET LOCAL session_replication_role = replica;
CREATE TEMPORARY TABLE keys ON COMMIT DROP AS
    SELECT n, 'sha256/' || encode(sha256(n::text::bytea), 'hex') AS key FROM generate_series(1, 20000) n;
INSERT INTO audits
        (id, request_id, owner_id, job_id, purpose, before_checkpoint_id, after_checkpoint_id, objects)
    SELECT 'a' || n, 'r', 'o', 'j' || n, 'asked', 'c', 'c',
        jsonb_build_object('encoder', jsonb_build_object('matrix', key)) FROM keys;
INSERT INTO comparisons (id, owner_id, model_id, job_id, checkpoint_id, settings, objects)
    SELECT 'c' || n, 'o', 'm', 'j' || n, 'c', '{}', jsonb_build_object('tables', ARRAY['of/' || key])
    FROM keys;
"""
"""Audits and comparisons that name an object each."""


@pytest.fixture(scope="module")
def large(engine: Engine) -> Engine:
    with engine.begin() as connection:
        connection.exec_driver_sql(FILL)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE audits, comparisons"))
    return engine


def key_of(number: int) -> str:
    return f"sha256/{sha256(str(number).encode()).hexdigest()}"


def explained(engine: Engine, keys: list[str]) -> str:
    """What PostgreSQL would do to find out which of the keys are named."""
    asked = []

    def hear(*told: object) -> None:
        asked.append(told[2:4])

    event.listen(engine, "before_cursor_execute", hear)
    with Session(engine) as session:
        references.named(session, keys)
    event.remove(engine, "before_cursor_execute", hear)
    ((statement, parameters),) = asked
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)  # type: ignore[arg-type]
        return "\n".join(plan.scalars())


def test_those_that_a_document_names_at_any_depth_are_found_and_no_parts_of_them(
    large: Engine,
) -> None:
    of_both = [key_of(1), f"of/{key_of(2)}"]
    with Session(large) as session:
        asked = [*of_both, key_of(0), f"of/{key_of(0)}", key_of(3)[:-1], "tables", "encoder"]
        assert references.named(session, asked) == set(of_both)
        assert references.named(session, []) == set()


@pytest.mark.parametrize("count", [1, 5000])
def test_documents_are_not_read_one_by_one(large: Engine, count: int) -> None:
    plan = explained(large, [key_of(number) for number in range(count)])
    assert "Bitmap Index Scan on ix_audits_objects" in plan
    assert "Bitmap Index Scan on ix_comparisons_objects" in plan
    assert "Seq Scan on audits" not in plan
    assert "Seq Scan on comparisons" not in plan


def test_every_column_that_names_objects_has_an_index(engine: Engine) -> None:
    found = inspect(engine)
    for column in COLUMNS:
        leading = [
            str(each["column_names"][0] or each["expressions"][0])
            for each in found.get_indexes(column.class_.__tablename__)
        ]
        assert any(column.key in each for each in leading), column
