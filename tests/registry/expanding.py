"""What a migration does beyond adding: with any of it, programs of the version before cannot go on."""

import io
import re
from types import ModuleType

from alembic.migration import MigrationContext
from alembic.operations import Operations

NEW_TABLE = re.compile(r"CREATE TABLE (\w+) ")
NEW_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX \w+ ON (\w+) ")
NEW_COLUMN = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (\w+) (.*)")
NEW_RULE = re.compile(r"ALTER TABLE (\w+) ADD CONSTRAINT (\w+) (.*)")
LIFTED_RULE = re.compile(r"ALTER TABLE \w+ DROP CONSTRAINT (ck_\w+)")
REFERENCE = re.compile(r"FOREIGN KEY\((\w+)\)")


def statements(script: ModuleType) -> list[str]:
    """What the script's upgrade would execute, each on one line."""
    output = io.StringIO()
    options = {"as_sql": True, "output_buffer": output}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    with Operations.context(context):
        script.upgrade()
    parts = output.getvalue().split(";\n\n")
    return [" ".join(part.split()) for part in parts if part.strip()]


def beyond_adding(script: ModuleType) -> list[str]:
    """The statements that do more than add what an older program need not know.

    Whether a check that takes another's place allows all that it did is for its writer to see.
    """
    found: list[str] = []
    tables: set[str] = set()
    columns: set[tuple[str, str]] = set()
    lifted: set[str] = set()
    for each in statements(script):
        if made := NEW_TABLE.match(each):
            tables.add(made[1])
        elif made := NEW_INDEX.match(each):
            if made[1] and made[2] not in tables:
                found.append(each)
        elif made := NEW_COLUMN.match(each):
            columns.add((made[1], made[2]))
            if "NOT NULL" in made[3] and "DEFAULT" not in made[3]:
                found.append(each)
        elif made := LIFTED_RULE.fullmatch(each):
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
