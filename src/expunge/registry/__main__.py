"""`python -m expunge.registry`: migrate, back up, restore and check; make an operator's key and signing keys.

For whoever installs and runs the service.
"""

import argparse
import json
import sys
from pathlib import Path

import psycopg
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from expunge.evidence.signing import Signer, UnusableKey
from expunge.registry import operations, parties, signing_keys
from expunge.registry.backup import BackupRefused
from expunge.registry.database import connect, sessions
from expunge.registry.log import SERVICE
from expunge.registry.migration import migrate
from expunge.registry.objects import StoreUnavailable
from expunge.registry.settings import Settings
from expunge.registry.signing_keys import NoSigningKey

CANNOT = 2
"""Exit status of an operation that was refused or could not be done; 1: it was, and found something."""


def main() -> None:
    """Run one of the commands; settings come from the environment."""
    arguments = _parser().parse_args()
    try:
        if arguments.command == "migrate":
            migrate(Settings().database_url)
        elif arguments.command == "operator-key":
            _tell(_operator_key(Settings(), arguments.name))
        elif arguments.command == "new-signing-key":
            _tell(_new_signing_key(arguments.path))
        elif arguments.command == "rotate-signing-key":
            _tell(_rotate(Settings(), arguments.new))
        else:
            sys.exit(operations.run(arguments, Settings()))
    except (NoSigningKey, UnusableKey, FileExistsError) as error:
        sys.exit(str(error))
    # Of settings that are missing or wrong; their values are not in its words.
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(CANNOT)
    # psycopg's own come from COPY, which SQLAlchemy knows nothing of.
    except (BackupRefused, StoreUnavailable, DBAPIError, psycopg.Error, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(CANNOT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m expunge.registry", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database to the newest schema")
    key = commands.add_parser(
        "operator-key", help="print a new key of an operator, made if there is none of that name"
    )
    key.add_argument("--name", default="operator", help="name of the operator party")
    new = commands.add_parser(
        "new-signing-key", help="write a private key for EXPUNGE_SIGNING_KEY_FILE"
    )
    new.add_argument("path", type=Path, help="a file that does not exist yet")
    rotate = commands.add_parser(
        "rotate-signing-key", help="let the key of EXPUNGE_SIGNING_KEY_FILE introduce a new one"
    )
    rotate.add_argument("--new", type=Path, required=True, help="file of the new private key")
    operations.add_to(commands)
    return parser


def _operator_key(settings: Settings, name: str) -> dict[str, str | None]:
    engine = connect(settings.database_url)
    with sessions(engine).begin() as session:
        party = parties.operator_named(session, name, actor=SERVICE)
        issued = parties.issue_key(session, party.id, expires_in_days=None, actor=SERVICE)
        answer = {"party_id": party.id, "key_id": issued.key.id, "secret": issued.secret}
    engine.dispose()
    return answer


def _new_signing_key(path: Path) -> dict[str, str]:
    signer = Signer.create(path)
    return {"key_id": signer.key_id, "public_key": signer.public_key.pem}


def _rotate(settings: Settings, path: Path) -> dict[str, str]:
    new = Signer.load(path)
    engine = connect(settings.database_url)
    with sessions(engine).begin() as session:
        old = signing_keys.required(session, settings)
        row = signing_keys.rotate(session, old, new)
        answer = {"retired": old.key_id, "in_use": row.id}
    engine.dispose()
    return answer


def _tell(answer: dict[str, str | None] | dict[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
