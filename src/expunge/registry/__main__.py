"""`python -m expunge.registry`: migrate the database, make an operator's key. For whoever installs the service."""

import argparse
import json
import sys

from expunge.registry import parties
from expunge.registry.database import connect, sessions
from expunge.registry.log import SERVICE
from expunge.registry.migration import migrate
from expunge.registry.settings import Settings


def main() -> None:
    """Run one of the two commands; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="python -m expunge.registry", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database to the newest schema")
    key = commands.add_parser(
        "operator-key", help="print a new key of an operator, made if there is none of that name"
    )
    key.add_argument("--name", default="operator", help="name of the operator party")
    arguments = parser.parse_args()
    settings = Settings()
    if arguments.command == "migrate":
        migrate(settings.database_url)
        return
    engine = connect(settings.database_url)
    with sessions(engine).begin() as session:
        party = parties.operator_named(session, arguments.name, actor=SERVICE)
        issued = parties.issue_key(session, party.id, expires_in_days=None, actor=SERVICE)
        answer = {"party_id": party.id, "key_id": issued.key.id, "secret": issued.secret}
    engine.dispose()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
