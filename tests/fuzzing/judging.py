"""What is wrong with an answer: statuses, schemas, and what belongs to others. Sends nothing."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.fuzzing.islands import ANONYMOUS, OPERATOR, World

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ID = re.compile(r"\b(?:pty|key|dst|mdl|ckp|req|job|aud|cmp|crt|dlg|enc|alr|upl)_[0-9a-f]{32}")
SECRET = re.compile(r"xpk_[A-Za-z0-9_-]{8,}")
OPERATED = ("pty", "key")
"""What an operator sees of everybody."""
SHARED = ("pty", "mdl", "ckp")
"""What two data owners may see of each other's: the model that both are in, its owner, its checkpoints."""
ISSUING = ("create_key", "rotate_key")
"""Operations that show a new key's secret, to whoever makes it, once."""
SHARING = ("create_grant", "create_delegation")
"""Operations after which another party may see a data set."""
TURNED_AWAY = (401, 403, 405)
SHOWN_CHARS = 1_500
CONTEXT_CHARS = 500


@dataclass
class Finding:
    """One kind of fault at one route, with the first call that showed it."""

    kind: str
    operation: str
    example: str
    count: int = 1


@dataclass
class Judge:
    """Looks at every answer; remembers who saw which id first."""

    world: World
    answers: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By operation, caller and status."""
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)
    seen_first: dict[str, str] = field(default_factory=dict)
    """Who saw an id first: in practice whose it is."""

    def look(self, name: str, case: Case, answer: httpx.Response, *, whole: bool) -> None:
        """Judge an answer that a caller got; without `whole`, it is the beginning of a stream."""
        operation = label_of(case.operation)
        self.answers[operation, name, answer.status_code] += 1
        checks = CHECKS if whole else [check for check in CHECKS if "schema" not in check.__name__]
        try:
            case.validate_response(answer, checks=checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                kind = f"{type(failure).__name__}: {failure.title}"
                self.found(kind, case, name, f"{failure.message}\n{told(answer)}")
        if answer.is_success and operation in SHARING:
            self._note_shared(answer.json())
        for kind, what in self._leaks(operation, name, answer):
            self.found(kind, case, name, f"{what}\n{told(answer)}")

    def callers(self, operation: str) -> list[str]:
        """Who was not always turned away from it for what they are."""
        return sorted(
            {
                name
                for asked, name, status in self.answers
                if asked == operation and status not in TURNED_AWAY
            }
        )

    def found(self, kind: str, case: Case, name: str, what: str) -> None:
        """Keep a finding, the first of its kind at its route with all that is needed to repeat it."""
        place = (kind, label_of(case.operation))
        if place in self.findings:
            self.findings[place].count += 1
            return
        call = f"{case.method} {case.formatted_path} {case.query} as {name}\n{case.body!r:.800}"
        self.findings[place] = Finding(*place, f"{call}\n{what[:SHOWN_CHARS]}")

    def _note_shared(self, made: dict[str, Any]) -> None:
        if "auditor_id" in made:
            for dataset in made["dataset_ids"]:
                self.world.share(dataset, made["auditor_id"], samples=True)
        else:
            self.world.share(made["dataset_id"], made["party_id"], samples=False)

    def _leaks(self, operation: str, name: str, answer: httpx.Response) -> list[tuple[str, str]]:
        # Arrays hold their text four bytes a character.
        text = answer.content.replace(b"\0", b"").decode("latin-1") + str(answer.headers)
        sent = f"{answer.request.url} {answer.request.content!r}"
        found = [
            ("a mark of another party", around(mark, text))
            for mark in self.world.marks.foreign(text, name)
            if mark not in sent
        ]
        if operation not in ISSUING:
            found += [("a key's secret", each) for each in SECRET.findall(text) if each not in sent]
        for each in set(ID.findall(text)):
            first = self.seen_first.setdefault(each, name)
            if each not in sent and not self._may_see(name, first, each[:3]):
                found.append(
                    (f"an id of another party: {each[:3]}", f"of {first}: {around(each, text)}")
                )
        return found

    def _may_see(self, name: str, first: str, kind: str) -> bool:
        if name == first:
            return True
        if ANONYMOUS in (name, first):
            return False
        if OPERATOR in (name, first):
            return kind in OPERATED
        one, other = (self.world.residents[each] for each in (name, first))
        if one.island != other.island:
            return False
        are_both_owners = one.role == other.role
        return kind in SHARED if are_both_owners else True


def around(what: str, text: str) -> str:
    """Where it stands."""
    place = text.index(what)
    return text[max(0, place - CONTEXT_CHARS) : place + CONTEXT_CHARS]


def label_of(operation: APIOperation) -> str:
    """The operation's name in the description."""
    return str(operation.definition.raw.get("operationId"))


def told(answer: httpx.Response) -> str:
    """Status and the beginning of the body."""
    return f"{answer.status_code} {answer.content[:500]!r}"


def table(answers: Counter[tuple[str, str, int]]) -> dict[str, dict[str, dict[str, int]]]:
    """Operation to caller to status to number, sorted."""
    found: dict[str, Any] = {}
    for (operation, name, status), count in sorted(answers.items()):
        found.setdefault(operation, {}).setdefault(name, {})[str(status)] = count
    return found
