"""What a migration does beyond adding: with any of it, programs of the version before cannot go on."""

import io
import re
from types import ModuleType

from alembic.migration import MigrationContext
from alembic.operations import Operations

NEW_TABLE = re.compile(r"CREATE TABLE (\w+) ")
NEW_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX (CONCURRENTLY )?(\w+) ON (\w+) ")
ASIDE = ("COMMIT", "BEGIN", "SET lock_timeout = 0", "RESET lock_timeout")
"""Around what is not done in a transaction."""
NEW_COLUMN = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (\w+) (.*)")
NEW_RULE = re.compile(r"ALTER TABLE (\w+) ADD CONSTRAINT (\w+) (.*)")
LIFTED = re.compile(
    r"(?:ALTER TABLE \w+ DROP CONSTRAINT (?=ck_)|DROP INDEX CONCURRENTLY IF EXISTS )(\w+)"
)
REFERENCE = re.compile(r"FOREIGN KEY\((\w+)\)")


def statements(script: ModuleType) -> list[str]:
    """What the script's upgrade would execute, each on one line, without what only stands around it."""
    output = io.StringIO()
    options = {"as_sql": True, "output_buffer": output}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    with Operations.context(context):
        script.upgrade()
    lines = (" ".join(part.split()) for part in output.getvalue().split(";\n\n"))
    return [line for line in lines if line and line not in ASIDE]


def beyond_adding(script: ModuleType) -> list[str]:
    """The statements that do more than add what an older program need not know.

    Whether a check that takes another's place allows all that it did is for its writer to see. An index of
    rows that are there is built beside the work, or older programs would run into their lock timeout.
    """
    found: list[str] = []
    tables: set[str] = set()
    columns: set[tuple[str, str]] = set()
    lifted: set[str] = set()
    for each in statements(script):
        if made := NEW_TABLE.match(each):
            tables.add(made[1])
        elif made := NEW_INDEX.match(each):
            if made[4] not in tables and (made[1] or not made[2]):
                found.append(each)
            lifted.discard(made[3])
        elif made := NEW_COLUMN.match(each):
            columns.add((made[1], made[2]))
            if "NOT NULL" in made[3] and "DEFAULT" not in made[3]:
                found.append(each)
        elif made := LIFTED.fullmatch(each):
            lifted.add(made[1])
        elif made := NEW_RULE.match(each):
            table, name, rule = made.groups()
            refers = REFERENCE.match(rule)
            is_new = table in tables or (refers and (table, refers[1]) in columns)
            if not is_new and name not in lifted:
                found.append(each)
            lifted.discard(name)
        else:
            found.append(each)
    return found + sorted(lifted)
